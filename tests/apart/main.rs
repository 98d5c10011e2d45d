//! Promise 8 between applications: whatever one app is told says nothing of another's work.

mod borders;
mod lives;
mod members;
mod numbers;
mod values;
mod world;
