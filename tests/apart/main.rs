//! Promise 8 between applications: whatever one app is told says nothing of another's work.

mod numbers;
mod world;
