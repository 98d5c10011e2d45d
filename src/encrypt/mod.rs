//! Worker threads that load runs, seal them and hand them to `deliver`.
