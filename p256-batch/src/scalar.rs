//! Private keys, and how they are cut into digits.
//!
//! # Digits
//!
//! A window method that has digits of zero must add nothing for them, and hide that it does. So scalars are written with digits
//! that are never zero. Every odd k below 2^256 is
//!
//! ```text
//!   k = 2^255 + sum over i in 0..51 of d_i 32^i,      d_i odd, -31 <= d_i <= 31
//! ```
//!
//! Proof: let u_i be the 51 digits of five bits of (k - 1) / 2, which is below 2^255, and d_i = 2 u_i - 31. The sum of
//! 2 u_i 32^i is k - 1, and the sum of 31 * 32^i is 32^51 - 1 = 2^255 - 1. So the digits are read off the bits, without a
//! carry. An even k is replaced by n - k, which is odd, as n is; then the negative of the wanted point comes out.

use zeroize::{Zeroize, Zeroizing};

/// Bits of a digit.
const WINDOW: usize = 5;
/// Digits of a scalar.
pub const DIGITS: usize = 51;
/// Entries of a table: the odd multiples 1, 3, 5, … 31.
pub const MULTIPLES: usize = 1 << (WINDOW - 1);

const _: () = assert!(WINDOW * DIGITS == 255);

/// The order of the group, lowest word first.
const ORDER: [u64; 4] = [0xf3b9_cac2_fc63_2551, 0xbce6_faad_a717_9e84, 0xffff_ffff_ffff_ffff, 0xffff_ffff_0000_0000];

/// A private key, in 1..n; lowest word first.
#[derive(Clone)]
pub struct Scalar(Zeroizing<[u64; 4]>);

impl Scalar {
    /// The scalar whose bytes are given, highest first, if it is in 1..n.
    ///
    /// What may show in the time is that bytes were refused. Those are thrown away, and the next are drawn anew: they say
    /// nothing about the key that is used.
    pub fn new(bytes: &[u8; 32]) -> Option<Scalar> {
        let scalar = Scalar(Zeroizing::new(words(bytes)));
        let zero = scalar.0.iter().fold(0, |all, word| all | word) == 0;
        let (_, below) = minus(&scalar.0, &ORDER);
        (below == 1 && !zero).then_some(scalar)
    }

    /// One, for lanes that have nothing to do.
    pub fn one() -> Scalar {
        Scalar(Zeroizing::new([1, 0, 0, 0]))
    }
}

/// The digits of eight scalars, by digit and lane; the lowest digit first.
pub struct Digits {
    /// What |d| is the double of, rounded down: the place in a table of odd multiples.
    pub index: [[u64; 8]; DIGITS],
    /// The lanes in which d is negative.
    pub negative: [u8; DIGITS],
    /// The lanes in which k was even, and n - k took its place.
    pub flipped: u8,
}

impl Digits {
    /// Cuts eight scalars. No branch and no address depends on them: `lane`, `digit`, and with them all shifts, are public.
    pub fn new(scalars: &[Scalar; 8]) -> Digits {
        let mut digits = Digits { index: [[0; 8]; DIGITS], negative: [0; DIGITS], flipped: 0 };
        for (lane, scalar) in scalars.iter().enumerate() {
            let k = &scalar.0;
            let even = (k[0] & 1) ^ 1;
            // All ones where k is even. The barrier keeps the compiler from making a branch of it.
            let mask = std::hint::black_box(even.wrapping_neg());
            let negative = Zeroizing::new(minus(&ORDER, k).0);
            let mut odd = Zeroizing::new([0; 5]);
            for word in 0..4 {
                odd[word] = k[word] ^ (mask & (k[word] ^ negative[word]));
            }
            digits.flipped |= (even as u8) << lane;
            for digit in 0..DIGITS {
                // Bit 0 of k stands for the 1 in (k - 1) / 2, so the digits start at bit 1.
                let (word, bit) = ((WINDOW * digit + 1) / 64, (WINDOW * digit + 1) % 64);
                let bits = (odd[word] >> bit | (odd[word + 1] << 1) << (63 - bit)) & 31;
                // d = 2 u - 31: for u >= 16 it is 2 (u - 16) + 1, else -(2 (15 - u) + 1).
                let negative = (bits >> 4) ^ 1;
                digits.index[digit][lane] = (bits ^ negative.wrapping_neg()) & 15;
                digits.negative[digit] |= (negative as u8) << lane;
            }
        }
        digits
    }
}

impl Zeroize for Digits {
    fn zeroize(&mut self) {
        self.index.zeroize();
        self.negative.zeroize();
        self.flipped.zeroize();
    }
}

/// Words of a number whose bytes stand highest first; the lowest word first.
pub fn words(bytes: &[u8; 32]) -> [u64; 4] {
    let (words, _) = bytes.as_chunks();
    [3, 2, 1, 0].map(|i| u64::from_be_bytes(words[i]))
}

/// a - b mod 2^256, and 1 if b is larger.
pub fn minus(a: &[u64; 4], b: &[u64; 4]) -> ([u64; 4], u64) {
    let mut borrow = 0;
    let difference = core::array::from_fn(|i| {
        let (once, under) = a[i].overflowing_sub(b[i]);
        let (twice, under_again) = once.overflowing_sub(borrow);
        borrow = u64::from(under | under_again);
        twice
    });
    (difference, borrow)
}
