//! Arithmetic modulo the prime of P-256, in eight lanes at once.
//!
//! # Representation
//!
//! p = 2^256 - 2^224 + 2^192 + 2^96 - 1. A number is five limbs of 52 bits, limb i counting 2^(52 i); a limb is one vector of
//! eight 64-bit lanes, and the lanes never meet. IFMA multiplies the low 52 bits of two lanes and adds either the low or the
//! high 52 bits of the 104-bit product to a third.
//!
//! Numbers are in Montgomery form: x stands for x / R mod p, R = 2^260. As 16 p < 2^260 < 17 p, there is room above p, and
//! numbers are rarely reduced to the range below it. How far one may lie above is in its type, and the compiler checks it:
//!
//! - [`Field<K>`]: every limb in 0..2^52, the value in 0..K p, K at most 16. The only thing that may be multiplied.
//! - [`Sum<LO, HI>`]: limbs are signed and of any size below 2^62 (see "Limbs"), the value lies in -LO p..HI p.
//! - [`Wide<LO, HI>`]: ten signed columns, column i counting 2^(52 i), the value in -LO p^2..HI p^2.
//!
//! Additions and subtractions make a `Sum`, limb by limb, without carries. [`Sum::lift`] and [`Sum::fold`] carry it to a `Field`:
//! the first adds a multiple of p that makes it positive, the second brings it below 2 p.
//!
//! # Why no bit is lost
//!
//! IFMA ignores bits 52 and up of what it multiplies. In [`product`], [`square`] these are limbs of a `Field`, where there are
//! none. In [`Wide::reduce`] ignoring them is what is wanted, see there.
//!
//! *Columns.* A product is 25 pairs of limbs, each adding a low half (below 2^52) to column i + j and a high half (below 2^52)
//! to column i + j + 1: at most nine halves meet in a column, so a column is below 9 * 2^52. The largest combination is
//! [`Wide::minus_8_squares`], within 81 * 2^52. `reduce` adds at most six halves and one carry, below 2^12, to a column. So a
//! column stays within 88 * 2^52 < 2^59 and a signed 64-bit lane holds it.
//!
//! *Limbs.* What `reduce` leaves are columns, below 2^59. A `Sum` is made of at most three of those or `Field`s, one of them
//! perhaps times two, three or four: below 2^62.
//!
//! *Carries* are arithmetic shifts, which round down: x = 2^52 * (x >> 52) + (x mod 2^52) also where x is negative.

use core::arch::x86_64::*;

use super::scalar::words;

/// One limb of eight numbers.
type Lanes = __m512i;

/// Bits of a limb.
const BITS: u32 = 52;
const MASK: i64 = (1 << BITS) - 1;

/// p by limbs: 2^96 - 1 fills the lowest and 44 bits of the next, 2^192 is bit 36 of the fourth, 2^256 - 2^224 are bits 16 to 47
/// of the fifth.
const P: [i64; 5] = [MASK, (1 << 44) - 1, 0, 1 << 36, (1 << 48) - (1 << 16)];

/// R^2 mod p.
const R_SQUARED: [i64; 5] = [0x300, 0xf_ffff_fff0_0000, 0xf_fffe_ffff_fffb, 0xf_dfff_ffff_ffff, 0x4ff_ffff];

/// Below `K` p, each limb below 2^52.
#[derive(Clone, Copy)]
pub struct Field<const K: i64>([Lanes; 5]);

/// Between -`LO` p and `HI` p, not carried.
#[derive(Clone, Copy)]
pub struct Sum<const LO: i64, const HI: i64>([Lanes; 5]);

/// Between -`LO` p^2 and `HI` p^2, not reduced.
#[derive(Clone, Copy)]
pub struct Wide<const LO: i64, const HI: i64>([Lanes; 10]);

#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn lo(sum: Lanes, a: Lanes, b: Lanes) -> Lanes {
    _mm512_madd52lo_epu64(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn hi(sum: Lanes, a: Lanes, b: Lanes) -> Lanes {
    _mm512_madd52hi_epu64(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: Lanes, b: Lanes) -> Lanes {
    _mm512_add_epi64(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sub(a: Lanes, b: Lanes) -> Lanes {
    _mm512_sub_epi64(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn all(value: i64) -> Lanes {
    _mm512_set1_epi64(value)
}

/// a * b.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn product<const A: i64, const B: i64, const C: i64>(a: &Field<A>, b: &Field<B>) -> Wide<0, C> {
    const { assert!(A * B <= C) };
    let mut t = [_mm512_setzero_si512(); 10];
    for i in 0..5 {
        for j in 0..5 {
            t[i + j] = lo(t[i + j], a.0[i], b.0[j]);
            t[i + j + 1] = hi(t[i + j + 1], a.0[i], b.0[j]);
        }
    }
    Wide(t)
}

/// The columns of a * a in two parts: those of each pair of different limbs once, and those of each limb by itself. The square
/// has the first twice.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn square_parts<const A: i64>(a: &Field<A>) -> ([Lanes; 10], [Lanes; 10]) {
    let (mut cross, mut own) = ([_mm512_setzero_si512(); 10], [_mm512_setzero_si512(); 10]);
    for i in 0..5 {
        for j in i + 1..5 {
            cross[i + j] = lo(cross[i + j], a.0[i], a.0[j]);
            cross[i + j + 1] = hi(cross[i + j + 1], a.0[i], a.0[j]);
        }
        own[2 * i] = lo(own[2 * i], a.0[i], a.0[i]);
        own[2 * i + 1] = hi(own[2 * i + 1], a.0[i], a.0[i]);
    }
    (cross, own)
}

/// a * a: 30 multiplications instead of 50.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn square<const A: i64, const C: i64>(a: &Field<A>) -> Wide<0, C> {
    const { assert!(A * A <= C) };
    let (cross, own) = square_parts(a);
    let mut t = own;
    for i in 1..9 {
        t[i] = add(own[i], add(cross[i], cross[i]));
    }
    Wide(t)
}

impl<const HI: i64> Wide<0, HI> {
    /// self - a.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn minus<const A: i64, const L: i64>(self, a: Wide<0, A>) -> Wide<L, HI> {
        const { assert!(0 < A && A <= L) };
        Wide(core::array::from_fn(|i| sub(self.0[i], a.0[i])))
    }

    /// self - 8 a * a.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn minus_8_squares<const A: i64, const L: i64>(self, a: &Field<A>) -> Wide<L, HI> {
        const { assert!(0 < A && 8 * A * A <= L) };
        let (cross, own) = square_parts(a);
        let mut t = self.0;
        for i in 0..10 {
            t[i] = sub(t[i], _mm512_slli_epi64::<3>(own[i]));
            if (1..9).contains(&i) {
                t[i] = sub(t[i], _mm512_slli_epi64::<4>(cross[i]));
            }
        }
        Wide(t)
    }
}

impl<const LO: i64, const HI: i64> Wide<LO, HI> {
    /// Montgomery's reduction: self / R mod p.
    ///
    /// Five times the lowest column is made zero by adding a multiple q p. As p = -1 mod 2^52, q is the column itself mod 2^52,
    /// which is what IFMA sees of it. Column = 2^52 * carry + q, and q p = q (p + 1) - q: the last q takes away what the
    /// column had, the carry goes to the next column, and q (p + 1) = q (2^44 * 2^52 + 2^36 * 2^156 + (2^48 - 2^16) * 2^208) is
    /// added to the columns above, low and high halves.
    ///
    /// In all, q' p with 0 <= q' < R was added: so the value, divided by R, is between -LO p^2 / R and HI p^2 / R + p. And
    /// p / R < 1 / 16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn reduce<const L: i64, const H: i64>(self) -> Sum<L, H> {
        const { assert!(LO <= 16 * L && HI <= 16 * (H - 1)) };
        let mut t = self.0;
        let (p1, p3, p4) = (all(P[1] + 1), all(P[3]), all(P[4]));
        for i in 0..5 {
            let column = t[i];
            // The carry is added last: the multiplication takes longer, and needs not wait for it.
            t[i + 1] = add(lo(t[i + 1], column, p1), _mm512_srai_epi64::<BITS>(column));
            t[i + 2] = hi(t[i + 2], column, p1);
            t[i + 3] = lo(t[i + 3], column, p3);
            t[i + 4] = lo(hi(t[i + 4], column, p3), column, p4);
            t[i + 5] = hi(t[i + 5], column, p4);
        }
        Sum([t[5], t[6], t[7], t[8], t[9]])
    }
}

/// a * b below 2 p.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn mul<const A: i64, const B: i64>(a: &Field<A>, b: &Field<B>) -> Field<2> {
    const { assert!(A * B <= 16) };
    let wide: Wide<0, 16> = product(a, b);
    let sum: Sum<0, 2> = wide.reduce();
    sum.lift()
}

/// a * a below 2 p.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn sqr<const A: i64>(a: &Field<A>) -> Field<2> {
    const { assert!(A * A <= 16) };
    let wide: Wide<0, 16> = square(a);
    let sum: Sum<0, 2> = wide.reduce();
    sum.lift()
}

impl<const LO: i64, const HI: i64> Sum<LO, HI> {
    /// self + a.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn plus<const A: i64, const B: i64, const L: i64, const H: i64>(self, a: Sum<A, B>) -> Sum<L, H> {
        const { assert!(LO + A <= L && HI + B <= H) };
        Sum(core::array::from_fn(|i| add(self.0[i], a.0[i])))
    }

    /// self - a.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn minus<const A: i64, const B: i64, const L: i64, const H: i64>(self, a: Sum<A, B>) -> Sum<L, H> {
        const { assert!(LO + B <= L && HI + A <= H) };
        Sum(core::array::from_fn(|i| sub(self.0[i], a.0[i])))
    }

    /// self * 2^`N`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn shl<const N: u32, const L: i64, const H: i64>(self) -> Sum<L, H> {
        const { assert!(LO << N <= L && HI << N <= H && N <= 2) };
        Sum(core::array::from_fn(|i| _mm512_slli_epi64::<N>(self.0[i])))
    }

    /// 3 self.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn times_3<const L: i64, const H: i64>(self) -> Sum<L, H> {
        const { assert!(3 * LO <= L && 3 * HI <= H) };
        Sum(self.0.map(|x| add(x, add(x, x))))
    }

    /// -self in the lanes of `mask`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn negate_if<const B: i64>(self, mask: __mmask8) -> Sum<B, B> {
        const { assert!(LO <= B && HI <= B) };
        Sum(core::array::from_fn(|i| _mm512_mask_sub_epi64(self.0[i], mask, _mm512_setzero_si512(), self.0[i])))
    }

    /// Made positive by adding LO p, and carried.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn lift<const K: i64>(self) -> Field<K> {
        const { assert!(LO + HI <= K && K <= 16) };
        let mut x = self.0;
        if LO > 0 {
            for i in 0..5 {
                x[i] = add(x[i], all(LO * P[i]));
            }
        }
        Field(carry(x))
    }

    /// Brought below 2 p, and carried.
    ///
    /// With v the value and t = floor((v - 2^230) / 2^256), v - t p lies between 0 and 2 p: v - t 2^256 is in
    /// 2^230..2^256 + 2^230, and t p differs from t 2^256 by at most 17 * 2^224 < 2^229, in either direction. Only the top limb
    /// is looked at, so t is that of a value that is off by what the other limbs hold: less than 2^(62 + 156 + 1), which is
    /// little beside 2^229.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn fold(self) -> Field<2> {
        const { assert!(LO <= 16 && HI <= 16) };
        let mut x = self.0;
        let t = _mm512_srai_epi64::<48>(sub(x[4], all(1 << (230 - 4 * BITS))));
        // t p = t (2^256 - 2^224 + 2^192 + 2^96 - 1), by limbs.
        x[0] = add(x[0], t);
        x[1] = sub(x[1], _mm512_slli_epi64::<44>(t));
        x[3] = sub(x[3], _mm512_slli_epi64::<36>(t));
        x[4] = add(sub(x[4], _mm512_slli_epi64::<48>(t)), _mm512_slli_epi64::<16>(t));
        Field(carry(x))
    }
}

/// Brings all limbs but the top one into 0..2^52, without changing the value. If that is in 0..16 p, the top limb is there too,
/// as 16 p < 2^260; if it is negative, so is the top limb.
#[inline]
#[target_feature(enable = "avx512f")]
fn carry(mut x: [Lanes; 5]) -> [Lanes; 5] {
    for i in 0..4 {
        x[i + 1] = add(x[i + 1], _mm512_srai_epi64::<BITS>(x[i]));
        x[i] = _mm512_and_si512(x[i], all(MASK));
    }
    x
}

impl<const K: i64> Field<K> {
    /// The same, as a sum of one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn sum(&self) -> Sum<0, K> {
        Sum(self.0)
    }

    /// The same, with a looser bound.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn loosen<const L: i64>(self) -> Field<L> {
        const { assert!(K <= L) };
        Field(self.0)
    }

    /// `other` in the lanes of `mask`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn or(self, mask: __mmask8, other: &Field<K>) -> Field<K> {
        Field(core::array::from_fn(|i| _mm512_mask_mov_epi64(self.0[i], mask, other.0[i])))
    }

    /// Eight numbers, by lane and limb. That they are below `K` p is for the caller to see to: of a lane in which it is not so
    /// the results mean nothing, but no other lane is touched.
    #[target_feature(enable = "avx512f")]
    pub fn from_lanes(numbers: &[[u64; 5]; 8]) -> Field<K> {
        Field(core::array::from_fn(|limb| {
            let [a, b, c, d, e, f, g, h] = numbers.map(|number| number[limb].cast_signed());
            _mm512_setr_epi64(a, b, c, d, e, f, g, h)
        }))
    }

    /// The same number in every lane, given by its limbs.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn constant(limbs: [i64; 5]) -> Field<K> {
        Field(limbs.map(|limb| all(limb)))
    }

    /// Limbs that are known to be those of such numbers.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn from_limbs(limbs: [Lanes; 5]) -> Field<K> {
        Field(limbs)
    }

    /// The limbs, lowest first.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn limbs(&self) -> &[Lanes; 5] {
        &self.0
    }

    /// The limbs less p, and the lanes in which that is negative.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn minus_p(&self) -> ([Lanes; 5], __mmask8) {
        let difference = carry(core::array::from_fn(|i| sub(self.0[i], all(P[i]))));
        (difference, _mm512_cmplt_epi64_mask(difference[4], _mm512_setzero_si512()))
    }

    /// The number that this stands for: out of Montgomery form, by a Montgomery multiplication with 1, and below p.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn canonical(&self) -> Field<1> {
        let wide: Wide<0, 16> = product(self, &Field::<1>::constant([1, 0, 0, 0, 0]));
        let sum: Sum<0, 2> = wide.reduce();
        sum.lift::<2>().below_p()
    }
}

impl Field<1> {
    /// The number in Montgomery form: x R^2 / R mod p.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn montgomery(&self) -> Field<1> {
        mul(self, &Field::<1>::constant(R_SQUARED)).below_p()
    }

    /// The lanes in which the number is below p in truth: after [`Field::from_lanes`].
    #[target_feature(enable = "avx512f")]
    pub fn is_below_p(&self) -> __mmask8 {
        self.minus_p().1
    }

    /// The lanes in which the number is 0, as numbers below p have one form.
    #[target_feature(enable = "avx512f")]
    pub fn is_zero(&self) -> __mmask8 {
        let any = self.0.into_iter().fold(_mm512_setzero_si512(), |any, limb| _mm512_or_si512(any, limb));
        _mm512_testn_epi64_mask(any, any)
    }

    /// By limb and lane.
    #[target_feature(enable = "avx512f")]
    pub fn to_lanes(self) -> [[u64; 8]; 5] {
        // SAFETY: both are 64 bytes without padding, and any bits are a value of either.
        self.0.map(|limb| unsafe { core::mem::transmute::<Lanes, [u64; 8]>(limb) })
    }
}

impl Field<2> {
    /// Below p: p is subtracted where the difference is not negative.
    #[target_feature(enable = "avx512f")]
    fn below_p(self) -> Field<1> {
        let (difference, negative) = self.minus_p();
        Field(core::array::from_fn(|i| _mm512_mask_mov_epi64(difference[i], negative, self.0[i])))
    }
}

/// 1 / a, or 0 for 0: a^(p - 2), by Fermat. The exponent in words of 32 bits:
/// ffffffff 00000001 00000000 00000000 00000000 ffffffff ffffffff fffffffd.
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn invert(a: &Field<2>) -> Field<2> {
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn times(mut a: Field<2>, squarings: u32, b: &Field<2>) -> Field<2> {
        for _ in 0..squarings {
            a = sqr(&a);
        }
        mul(&a, b)
    }
    // ones_n is a^(2^n - 1): n ones in the exponent.
    let ones_2 = times(*a, 1, a);
    let ones_3 = times(ones_2, 1, a);
    let ones_6 = times(ones_3, 3, &ones_3);
    let ones_12 = times(ones_6, 6, &ones_6);
    let ones_15 = times(ones_12, 3, &ones_3);
    let ones_30 = times(ones_15, 15, &ones_15);
    let ones_32 = times(ones_30, 2, &ones_2);
    let x = times(ones_32, 32, a);
    let x = times(x, 128, &ones_32);
    let x = times(x, 32, &ones_32);
    let x = times(x, 30, &ones_30);
    times(x, 2, a)
}

/// The limbs of a number whose bytes stand highest first.
pub fn limbs(bytes: &[u8; 32]) -> [u64; 5] {
    let w = words(bytes);
    let mask = MASK.cast_unsigned();
    [
        w[0] & mask,
        (w[0] >> 52 | w[1] << 12) & mask,
        (w[1] >> 40 | w[2] << 24) & mask,
        (w[2] >> 28 | w[3] << 36) & mask,
        w[3] >> 16,
    ]
}

/// The bytes, highest first, of a number below 2^256, given by its limbs.
pub fn bytes(x: [u64; 5]) -> [u8; 32] {
    let words = [x[0] | x[1] << 52, x[1] >> 12 | x[2] << 40, x[2] >> 24 | x[3] << 28, x[3] >> 36 | x[4] << 16];
    let mut bytes = [0; 32];
    for (chunk, word) in bytes.as_chunks_mut().0.iter_mut().rev().zip(words) {
        *chunk = word.to_be_bytes();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use num_bigint::{BigInt, BigUint, Sign};
    use proptest::prelude::*;

    use super::super::Batch;
    use super::*;

    fn p() -> BigInt {
        (BigInt::from(1) << 256u32) - (BigInt::from(1) << 224u32) + (BigInt::from(1) << 192u32) + (BigInt::from(1) << 96u32) - 1
    }

    fn modulo(x: BigInt) -> BigInt {
        ((x % p()) + p()) % p()
    }

    /// 1 / R mod p.
    fn r_inverse() -> BigInt {
        (BigInt::from(1) << 260u32).modpow(&(p() - 2), &p())
    }

    /// What is multiplied by one limb at a time, by lane.
    fn value(limbs: [Lanes; 5], lane: usize) -> BigInt {
        // SAFETY: see `to_lanes`.
        let limbs = limbs.map(|limb| unsafe { core::mem::transmute::<Lanes, [i64; 8]>(limb) }[lane]);
        limbs.iter().rev().fold(BigInt::ZERO, |all, limb| (all << 52) + limb)
    }

    fn limbs_of(value: &BigInt) -> [u64; 5] {
        std::array::from_fn(|i| ((value >> (52 * i)) & BigInt::from(MASK)).try_into().unwrap())
    }

    /// Numbers below `k` p, the ends of the range and of limbs among them.
    fn below(k: i64) -> impl Strategy<Value = BigInt> {
        let limb = prop_oneof![Just(0), Just(1), Just(MASK), Just(MASK - 1), 0..=MASK];
        let limbs = proptest::array::uniform5(limb);
        let any = limbs.prop_map(move |limbs| limbs.iter().rev().fold(BigInt::ZERO, |all, limb| (all << 52) + limb) % (p() * k));
        let near = (0..=k, -3..=3i64).prop_map(move |(times, more)| (p() * times + more).clamp(BigInt::ZERO, p() * k - 1));
        let power = (0..260u32, -1..=1i64).prop_map(move |(bit, more)| ((BigInt::from(1) << bit) + more) % (p() * k));
        prop_oneof![4 => any, 2 => near, 1 => power]
    }

    fn eight(k: i64) -> impl Strategy<Value = Vec<BigInt>> {
        proptest::collection::vec(below(k), 8)
    }

    #[target_feature(enable = "avx512f")]
    fn field<const K: i64>(values: &[BigInt]) -> Field<K> {
        Field::from_lanes(&std::array::from_fn(|lane| limbs_of(&values[lane])))
    }

    /// Checks that a result has the form its type promises, and the right value.
    #[track_caller]
    fn check<const K: i64>(result: Field<K>, right: impl Fn(usize) -> BigInt) {
        for lane in 0..8 {
            // SAFETY: see `to_lanes`.
            let limbs = result.0.map(|limb| unsafe { core::mem::transmute::<Lanes, [i64; 8]>(limb) }[lane]);
            assert!(limbs.iter().all(|limb| (0..=MASK).contains(limb)), "lane {lane}: {limbs:x?}");
            let value = value(result.0, lane);
            assert!(value < p() * K, "lane {lane}: {value:x} is not below {K} p");
            assert_eq!(modulo(value), modulo(right(lane)), "lane {lane}");
        }
    }

    #[test]
    fn constants() {
        assert_eq!(P.iter().rev().fold(BigInt::ZERO, |all, limb| (all << 52) + limb), p());
        let r_squared = modulo(BigInt::from(1) << 520u32);
        assert_eq!(limbs_of(&r_squared).map(u64::cast_signed), R_SQUARED);
    }

    proptest! {
        #[test]
        fn bytes_are_limbs_and_back(number: [u8; 32]) {
            prop_assert_eq!(bytes(limbs(&number)), number);
            prop_assert_eq!(limbs(&number), limbs_of(&BigUint::from_bytes_be(&number).into()));
        }

        #[test]
        fn multiplications(a in eight(4), b in eight(4), wide in eight(12), r in eight(8)) {
            let Some(_) = Batch::detect() else { return Ok(()) };
            let (r_1, times) = (r_inverse(), |a: &[BigInt], b: &[BigInt], lane: usize| &a[lane] * &b[lane]);
            // SAFETY: `Batch::detect` found the features.
            unsafe {
                let (x, y) = (field::<4>(&a), field::<4>(&b));
                check(mul(&x, &y), |lane| times(&a, &b, lane) * &r_1);
                check(sqr(&x), |lane| times(&a, &a, lane) * &r_1);
                let alpha: Sum<0, 4> = product::<4, 12, 48>(&x, &field::<12>(&wide)).reduce();
                check(alpha.lift::<4>(), |lane| times(&a, &wide, lane) * &r_1);
                let square: Sum<0, 5> = square::<8, 64>(&field::<8>(&r)).reduce();
                check(square.lift::<5>(), |lane| times(&r, &r, lane) * &r_1);
                let halves: Vec<_> = a.iter().map(|a| a / 2).collect();
                let fused: Wide<32, 16> = product::<4, 4, 16>(&x, &y).minus_8_squares(&field::<2>(&halves));
                let fused: Sum<2, 2> = fused.reduce();
                check(fused.lift::<4>(), |lane| (times(&a, &b, lane) - times(&halves, &halves, lane) * 8) * &r_1);
                let fused: Wide<16, 32> = product::<8, 4, 32>(&field(&r), &x).minus(product::<4, 4, 16>(&x, &y));
                let fused: Sum<1, 3> = fused.reduce();
                check(fused.lift::<4>(), |lane| (times(&r, &a, lane) - times(&a, &b, lane)) * &r_1);
            }
        }

        #[test]
        fn sums(a in eight(4), b in eight(4), c in eight(2), mask: u8) {
            let Some(_) = Batch::detect() else { return Ok(()) };
            // SAFETY: `Batch::detect` found the features.
            unsafe {
                let (x, y, z) = (field::<4>(&a).sum(), field::<4>(&b).sum(), field::<2>(&c).sum());
                let plus: Sum<0, 8> = x.plus(y);
                check(plus.lift::<8>(), |lane| &a[lane] + &b[lane]);
                let minus: Sum<4, 4> = x.minus(y);
                check(minus.lift::<8>(), |lane| &a[lane] - &b[lane]);
                check(minus.fold(), |lane| &a[lane] - &b[lane]);
                let four: Sum<0, 16> = x.shl::<2, 0, 16>();
                check(four.lift::<16>(), |lane| &a[lane] * 4);
                check(four.fold(), |lane| &a[lane] * 4);
                check(y.times_3::<0, 12>().lift::<12>(), |lane| &b[lane] * 3);
                let all: Sum<16, 16> = y.times_3::<0, 12>().plus::<0, 2, 0, 14>(z).minus::<0, 16, 16, 14>(four).plus::<0, 2, 16, 16>(z);
                check(all.fold(), |lane| &b[lane] * 3 + &c[lane] * 2 - &a[lane] * 4);
                let sign = |lane: usize| if mask >> lane & 1 == 1 { -1 } else { 1 };
                check(x.negate_if::<4>(mask).lift::<8>(), |lane| &a[lane] * sign(lane));
                check(x.negate_if::<4>(mask).fold(), |lane| &a[lane] * sign(lane));
                let chosen = field::<4>(&a).or(mask, &field(&b));
                check(chosen, |lane| if mask >> lane & 1 == 1 { b[lane].clone() } else { a[lane].clone() });
            }
        }

        #[test]
        fn one_form(a in eight(4), c in eight(2), mask: u8) {
            let Some(_) = Batch::detect() else { return Ok(()) };
            // SAFETY: `Batch::detect` found the features.
            unsafe {
                check(field::<2>(&c).below_p(), |lane| c[lane].clone());
                let canonical = field::<4>(&a).canonical();
                check(canonical, |lane| &a[lane] * r_inverse());
                let zeros = (0..8).fold(0, |all, lane| all | u8::from(&a[lane] % p() == BigInt::ZERO) << lane);
                assert_eq!(canonical.is_zero(), zeros);
                let below = (0..8).fold(0, |all, lane| all | u8::from(c[lane] < p()) << lane);
                assert_eq!(field::<1>(&c).is_below_p(), below);
                let below_p: Vec<_> = c.iter().map(|c| c % p()).collect();
                let montgomery = field::<1>(&below_p).montgomery();
                check(montgomery, |lane| &c[lane] << 260u32);
                check(montgomery.canonical(), |lane| c[lane].clone());
                // Some zeros among them: they have no inverse, and spoil nobody's.
                let some: Vec<_> = (0..8).map(|lane| if mask >> lane & 1 == 1 { BigInt::ZERO } else { c[lane].clone() }).collect();
                let inverse = invert(&field(&some));
                check(inverse, |lane| some[lane].modpow(&(p() - 2), &p()) << 520u32);
            }
        }

        /// Carries out of columns of any sign and size that is allowed.
        #[test]
        fn any_columns_are_reduced(columns in proptest::collection::vec(-(1i64 << 58)..1 << 58, 80)) {
            let Some(_) = Batch::detect() else { return Ok(()) };
            // SAFETY: `Batch::detect` found the features; the transmutation is that of `to_lanes`, backwards.
            unsafe {
                let t: [Lanes; 10] = std::array::from_fn(|i| {
                    let column: [i64; 8] = columns[8 * i..][..8].try_into().unwrap();
                    core::mem::transmute::<[i64; 8], Lanes>(column)
                });
                let sum: Sum<16, 17> = Wide::<256, 256>(t).reduce();
                for lane in 0..8 {
                    let wide = (0..10).rev().fold(BigInt::ZERO, |all, i| (all << 52) + columns[8 * i + lane]);
                    let value = value(sum.0, lane);
                    assert_eq!(modulo(value.clone()), modulo(&wide * r_inverse()));
                    // Exactly the quotient of what was added to it: within 0..p of the value divided by R.
                    let more = (value << 260u32) - wide;
                    assert!(more.sign() != Sign::Minus && more < p() << 260u32);
                }
            }
        }
    }
}
