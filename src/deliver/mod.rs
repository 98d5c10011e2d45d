//! Connections to push services, by origin.
