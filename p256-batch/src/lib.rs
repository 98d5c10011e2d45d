//! Ephemeral key pairs and their ECDH secrets, eight at a time, on processors with AVX-512 IFMA.
//!
//! Promises: what comes out is what any implementation of ECDH on P-256 gives, for every private and every public key; a public
//! key that is no point of the curve costs its own place only; no branch and no memory address depends on a private key or on
//! what is computed from it; and what was secret is wiped: keys, digits and secrets when they are dropped, what the
//! computation left on the stack after each pass. (Vector registers keep their last contents until their next use.)
//!
//! Each of the eight lanes of a vector register works at a pair of its own, in lockstep. `field.rs` is arithmetic modulo the
//! prime, `point.rs` the curve, `scalar.rs` cuts the private keys into digits, `pass.rs` goes from bytes to bytes. A pass costs
//! the same however many of its lanes are filled; it pays from two on.
//!
//! Without IFMA it is not worth while: four lanes of AVX2 (ten limbs of 26 bits, the prime's sparse form in the reduction) take 14 ns
//! a multiplication, and so do two or four chains of 64-bit limbs interleaved (one alone: 18 ns), while aws-lc-rs makes a whole
//! agreement, some 4,100 of them, in 48 us: 12 ns each.
//!
//! `unsafe` stands in two kinds of places: where code that needs the processor's features is entered from code that does not,
//! and where a register is looked at as an array. All else, the intrinsics too, is safe in a function that names the features.

#[cfg(target_arch = "x86_64")]
mod field;
#[cfg(target_arch = "x86_64")]
mod pass;
#[cfg(target_arch = "x86_64")]
mod point;
#[cfg(target_arch = "x86_64")]
mod scalar;
#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

use aws_lc_rs::error::Unspecified;
use zeroize::Zeroizing;

/// Pairs in a pass.
pub const LANES: usize = 8;

/// The proof that this processor can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    _detected: (),
}

/// What a key agreement gives: our ephemeral public key and the ECDH secret (RFC 8291 section 3.1).
pub struct Agreed {
    pub as_public: [u8; 65],
    pub secret: Zeroizing<[u8; 32]>,
}

impl Batch {
    /// Looks at the processor. The first call makes the table of the generator's multiples, which takes some milliseconds.
    pub fn detect() -> Option<Batch> {
        #[cfg(target_arch = "x86_64")]
        if pass::ready() {
            return Some(Batch { _detected: () });
        }
        None
    }

    /// A new key pair and its secret for each of up to eight uncompressed points; none where it is no point of the curve. The
    /// error is the random number generator's.
    #[inline]
    pub fn agree(self, theirs: &[&[u8; 65]]) -> Result<[Option<Agreed>; LANES], Unspecified> {
        #[cfg(target_arch = "x86_64")]
        return pass::agree(self, theirs);
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("never detected here: {}", theirs.len());
    }
}
