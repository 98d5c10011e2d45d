//! The VAPID keys of the apps (RFC 8292): [`key`] reads and writes key files and signs, [`token`] keeps a signed token ready for each
//! key and origin.

pub mod key;
pub mod token;
