//! Settles what came back.
