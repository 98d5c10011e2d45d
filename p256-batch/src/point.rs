//! The curve y^2 = x^3 - 3 x + b, eight points at once, in Jacobian coordinates: (X, Y, Z) is the point (X / Z^2, Y / Z^3).
//!
//! # No exceptional case
//!
//! The formulas below fail where a sum has two equal or two opposite points, and know no point at infinity. Neither happens, for
//! any scalar and any point of the curve (whose order is n, a prime, for each of them).
//!
//! Both products go the same way: A starts at 2^255, and for i = 50, 49, … 0 becomes A' = A + d_i 32^i, until it is k, odd and
//! in 1..n (`scalar.rs`). k G adds up the points A G; k P adds them up divided by 32^i, which changes nothing about which are
//! equal, as n is prime.
//!
//! - A is an odd multiple of 32^(i + 1): at the start it is 32^51. What is still to come adds up to less than 32^(i + 1) in absolute
//!   value, and leads to k > 0: so A is positive, and A > |d_i 32^i|.
//! - The sum is exceptional if n divides A - d_i 32^i or A + d_i 32^i. Both are positive, and multiples of 32^i. As A' < k + 32^i,
//!   both are below k + 63 * 32^50 < 2 n. So one of them would be n itself, which is odd: then i = 0.
//! - A + d_0 = k is not n. A - d_0 = n means k = n + 2 d_0, so d_0 < 0. But d_0 = (k mod 64) - 32, and n mod 64 = 17: so modulo 64
//!   d_0 = 17 + 2 d_0 - 32, d_0 = 15, which no negative digit is. (Windows of four and of six bits do have an exception here, for
//!   k = n - 2 and k = n - 34. A test has these scalars, and all near 0 and n.)
//! - Doubling fails for a point of order 2 only, and n is odd.
//! - The table of odd multiples is made by P + 2 P, 3 P + 2 P, … 29 P + 2 P: never equal, never opposite.

use core::arch::x86_64::*;

use super::field::{Field, Sum, Wide, invert, mul, product, sqr, square};
use super::scalar::{DIGITS, Digits, MULTIPLES};

/// 1 in Montgomery form: 2^260 mod p.
const ONE: [i64; 5] = [0x10, 0xf_0000_0000_0000, 0xf_ffff_ffff_ffff, 0xf_feff_ffff_ffff, 0xf_ffff];
/// b in Montgomery form.
const B: [i64; 5] = [0xd_f622_9c4b_ddfd, 0xc_a884_3090_d89c, 0x2_12ed_6acf_005c, 0x8_3415_a220_abf7, 0xc300_61dd_4874];

/// Eight points in affine coordinates.
#[derive(Clone, Copy)]
pub struct Affine {
    pub x: Field<1>,
    pub y: Field<1>,
}

/// Eight points in Jacobian coordinates, none at infinity.
#[derive(Clone, Copy)]
struct Point {
    x: Field<2>,
    y: Field<4>,
    z: Field<4>,
}

/// The odd multiples 1, 3, … 31 of 32^i G for i in 0..51, and 2^255 G: 65 KiB.
pub struct Comb {
    windows: Vec<Window>,
    top: Affine,
}

/// Sixteen points, the same for all lanes: by limb of x, then of y, two vectors with one point a lane.
#[derive(Clone, Copy)]
struct Window([[__m512i; 2]; 10]);

/// What [`multiply`] gives, canonical and out of Montgomery form.
pub struct Products {
    /// k G.
    pub x: Field<1>,
    pub y: Field<1>,
    /// The first coordinate of k P.
    pub shared: Field<1>,
}

/// k G and k P in every lane, for odd k.
#[target_feature(enable = "avx512f,avx512ifma")]
pub fn multiply(comb: &Comb, digits: &Digits, theirs: &Affine) -> Products {
    let theirs = Point::from(theirs);
    let table = multiples(&theirs);
    let mut ours = Point::from(&comb.top);
    let mut shared = theirs;
    for digit in (0..DIGITS).rev() {
        let (index, negative) = (lanes(digits.index[digit]), digits.negative[digit]);
        add_affine(&mut ours, &comb.windows[digit].select(index), negative);
        for _ in 0..5 {
            double(&mut shared);
        }
        add(&mut shared, &select(&table, index), negative);
    }
    // One inversion for both: 1 / Z is 1 / (Z Z') * Z'.
    let inverse = invert(&mul(&ours.z, &shared.z));
    let (ours_z, shared_z) = (mul(&inverse, &shared.z), mul(&inverse, &ours.z));
    let zz = sqr(&ours_z);
    let y = mul(&ours.y, &mul(&zz, &ours_z));
    // An even k was replaced by n - k. The first coordinate is the same for both.
    let y: Field<4> = y.sum().negate_if::<2>(digits.flipped).lift();
    Products { x: mul(&ours.x, &zz).canonical(), y: y.canonical(), shared: mul(&shared.x, &sqr(&shared_z)).canonical() }
}

impl Affine {
    /// The points with these coordinates, and the lanes in which it is one of the curve. The coordinates are below p.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn new(x: &Field<1>, y: &Field<1>) -> (Affine, __mmask8) {
        let point = Affine { x: x.montgomery(), y: y.montgomery() };
        // x^3 - 3 x + b - y^2 = (x^2 - 3) x + b - y^2.
        let three: Sum<0, 3> = Field::<1>::constant(ONE).sum().times_3();
        let factor: Sum<3, 2> = sqr(&point.x).sum().minus(three);
        let factor: Field<5> = factor.lift();
        let cube: Sum<0, 2> = product::<1, 5, 16>(&point.x, &factor).reduce();
        let right: Sum<0, 3> = cube.plus(Field::<1>::constant(B).sum());
        let difference: Sum<2, 3> = right.minus(sqr(&point.y).sum());
        (point, difference.fold().canonical().is_zero())
    }

    /// `other` in the lanes of `mask`.
    #[target_feature(enable = "avx512f")]
    pub fn or(self, mask: __mmask8, other: &Affine) -> Affine {
        Affine { x: self.x.or(mask, &other.x), y: self.y.or(mask, &other.y) }
    }
}

impl Point {
    #[target_feature(enable = "avx512f")]
    fn from(point: &Affine) -> Point {
        Point { x: point.x.loosen(), y: point.y.loosen(), z: Field::constant(ONE) }
    }
}

/// 2 a: alpha = 3 (X - Z^2) (X + Z^2), X' = alpha^2 - 8 X Y^2, Y' = alpha (4 X Y^2 - X') - 8 Y^4, Z' = 2 Y Z.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn double(a: &mut Point) {
    let zz = sqr(&a.z);
    let yy = sqr(&a.y);
    let difference: Sum<2, 2> = a.x.sum().minus(zz.sum());
    let sum: Sum<0, 4> = a.x.sum().plus(zz.sum());
    let sum: Sum<0, 12> = sum.times_3();
    let (difference, sum): (Field<4>, Field<12>) = (difference.lift(), sum.lift());
    let alpha: Sum<0, 4> = product::<4, 12, 48>(&difference, &sum).reduce();
    let alpha: Field<4> = alpha.lift();
    let yy_4: Sum<0, 8> = yy.sum().shl::<2, 0, 8>();
    let yy_4: Field<8> = yy_4.lift();
    let beta_4 = mul(&a.x, &yy_4);
    let alpha_alpha: Sum<0, 2> = square::<4, 16>(&alpha).reduce();
    let x: Sum<4, 2> = alpha_alpha.minus(beta_4.sum().shl::<1, 0, 4>());
    let x = x.fold();
    let down: Sum<2, 2> = beta_4.sum().minus(x.sum());
    let down: Field<4> = down.lift();
    let y: Wide<32, 16> = product::<4, 4, 16>(&alpha, &down).minus_8_squares(&yy);
    let y: Sum<2, 2> = y.reduce();
    let z: Sum<0, 2> = product::<4, 4, 16>(&a.y, &a.z).reduce();
    *a = Point { x, y: y.lift(), z: z.shl::<1, 0, 4>().lift() };
}

/// a + b, or a - b in the lanes of `negative`. With U = X Z'^2 and S = Y Z'^3 of one point with the other's Z, H = U_b - U_a,
/// R = S_b - S_a: X' = R^2 - H^3 - 2 U_a H^2, Y' = R (U_a H^2 - X') - S_a H^3, Z' = Z_a Z_b H.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn add(a: &mut Point, b: &Point, negative: __mmask8) {
    let (zz_a, zz_b) = (sqr(&a.z), sqr(&b.z));
    let (u_a, u_b) = (mul(&a.x, &zz_b), mul(&b.x, &zz_a));
    let s_a = mul(&a.y, &mul(&b.z, &zz_b));
    let s_b = mul(&b.y, &mul(&a.z, &zz_a));
    let z = mul(&a.z, &b.z);
    let r: Sum<4, 2> = s_b.sum().negate_if::<2>(negative).minus(s_a.sum());
    *a = finish(&u_a, &s_a, &u_b, &r.lift::<6>(), &z);
}

/// The same for a point whose Z is 1.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn add_affine(a: &mut Point, b: &Affine, negative: __mmask8) {
    let zz = sqr(&a.z);
    let u_b = mul(&b.x, &zz);
    let s_b = mul(&b.y, &mul(&a.z, &zz));
    let r: Sum<6, 2> = s_b.sum().negate_if::<2>(negative).minus(a.y.sum());
    *a = finish(&a.x, &a.y, &u_b, &r.lift::<8>(), &a.z);
}

/// The common end of both: from U_a, S_a, U_b, R, and the product of the Z.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn finish<const S: i64, const R: i64, const Z: i64>(
    u_a: &Field<2>,
    s_a: &Field<S>,
    u_b: &Field<2>,
    r: &Field<R>,
    z: &Field<Z>,
) -> Point {
    let h: Sum<2, 2> = u_b.sum().minus(u_a.sum());
    let h: Field<4> = h.lift();
    let hh = sqr(&h);
    let hhh = mul(&h, &hh);
    let v = mul(u_a, &hh);
    let rr: Sum<0, 5> = square::<R, 64>(r).reduce();
    let x: Sum<2, 5> = rr.minus(hhh.sum());
    let x: Sum<6, 5> = x.minus(v.sum().shl::<1, 0, 4>());
    let x = x.fold();
    let down: Sum<2, 2> = v.sum().minus(x.sum());
    let down: Field<4> = down.lift();
    let y: Wide<16, 32> = product::<R, 4, 32>(r, &down).minus(product::<S, 2, 16>(s_a, &hhh));
    let y: Sum<1, 3> = y.reduce();
    Point { x, y: y.lift(), z: mul(z, &h).loosen() }
}

/// P, 3 P, 5 P, … 31 P.
#[target_feature(enable = "avx512f,avx512ifma")]
fn multiples(point: &Point) -> [Point; MULTIPLES] {
    let mut twice = *point;
    double(&mut twice);
    let mut table = [*point; MULTIPLES];
    for i in 1..MULTIPLES {
        table[i] = table[i - 1];
        add(&mut table[i], &twice, 0);
    }
    table
}

/// In every lane the entry of its own table at its own index: all of the table is read, and masks pick.
#[inline]
#[target_feature(enable = "avx512f")]
fn select(table: &[Point; MULTIPLES], index: __m512i) -> Point {
    let mut point = table[0];
    #[allow(clippy::needless_range_loop, reason = "chained iterators lack the features, and are kept out of line")]
    for i in 1..MULTIPLES {
        let mask = _mm512_cmpeq_epi64_mask(index, _mm512_set1_epi64(i as i64));
        point.x = point.x.or(mask, &table[i].x);
        point.y = point.y.or(mask, &table[i].y);
        point.z = point.z.or(mask, &table[i].z);
    }
    point
}

impl Window {
    /// In every lane the point at its own index. All of the window is read; which of sixteen values a lane gets is decided
    /// within registers, by a permutation whose time does not depend on its operands.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn select(&self, index: __m512i) -> Affine {
        let limb = |i: usize| _mm512_permutex2var_epi64(self.0[i][0], index, self.0[i][1]);
        let x = [limb(0), limb(1), limb(2), limb(3), limb(4)];
        let y = [limb(5), limb(6), limb(7), limb(8), limb(9)];
        Affine { x: Field::from_limbs(x), y: Field::from_limbs(y) }
    }
}

impl Comb {
    /// Makes the table, `of` giving the coordinates, by limbs, of (2 j + 1) 32^i G for i and j.
    #[target_feature(enable = "avx512f,avx512ifma")]
    pub fn new(of: impl Fn(usize, usize) -> ([u64; 5], [u64; 5])) -> Comb {
        let eight = |points: [([u64; 5], [u64; 5]); 8]| {
            let (x, y) = (points.map(|point| point.0), points.map(|point| point.1));
            let (points, on_curve) = Affine::new(&Field::from_lanes(&x), &Field::from_lanes(&y));
            assert_eq!(on_curve, 0xff, "multiples of the generator are on the curve");
            points
        };
        let mut windows = Vec::with_capacity(DIGITS);
        for digit in 0..DIGITS {
            let half = |start: usize| {
                let points = eight(core::array::from_fn(|lane| of(digit, start + lane)));
                let (x, y) = (points.x.limbs(), points.y.limbs());
                [x[0], x[1], x[2], x[3], x[4], y[0], y[1], y[2], y[3], y[4]]
            };
            let (low, high) = (half(0), half(8));
            windows.push(Window(core::array::from_fn(|limb| [low[limb], high[limb]])));
        }
        Comb { windows, top: eight([of(DIGITS, 0); 8]) }
    }

    /// The generator in every lane.
    #[target_feature(enable = "avx512f")]
    pub fn generator(&self) -> Affine {
        self.windows[0].select(lanes([0; 8]))
    }
}

/// One number a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn lanes(values: [u64; 8]) -> __m512i {
    let [a, b, c, d, e, f, g, h] = values.map(u64::cast_signed);
    _mm512_setr_epi64(a, b, c, d, e, f, g, h)
}
