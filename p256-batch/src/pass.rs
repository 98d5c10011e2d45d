//! One pass: from bytes to lanes, and back.

use std::arch::is_x86_feature_detected;
use std::sync::LazyLock;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use p256::ProjectivePoint;
use p256::elliptic_curve::Group;
use p256::elliptic_curve::sec1::ToSec1Point;
use zeroize::{Zeroizing, zeroize_stack};

use super::field::{Field, bytes, limbs};
use super::point::{Affine, Comb, multiply};
use super::scalar::{DIGITS, Digits, MULTIPLES, Scalar};
use super::{Agreed, Batch, LANES};

/// More than a pass uses: 35 KiB by the frames in its machine code, of which the multiples of the eight points take 15.
const STACK: usize = 48 * 1024;

/// The generator's multiples. They are public, the same for all, and made by the p256 crate.
static COMB: LazyLock<Comb> = LazyLock::new(|| {
    assert!(possible(), "asked for by those who know only");
    let mut base = ProjectivePoint::GENERATOR;
    let mut multiples = Vec::with_capacity((DIGITS + 1) * MULTIPLES);
    for _ in 0..=DIGITS {
        let twice = base.double();
        let mut multiple = base;
        for _ in 0..MULTIPLES {
            let point = multiple.to_affine().to_sec1_point(false);
            multiples.push(coordinates(point.as_bytes().try_into().expect("an uncompressed point")));
            multiple += twice;
        }
        // 31 + 2 - 1 = 32: the base of the next digit.
        base = multiple - base;
    }
    // SAFETY: the processor has these features, see above.
    unsafe { Comb::new(|digit, multiple| multiples[digit * MULTIPLES + multiple]) }
});

fn possible() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")
}

/// Whether the processor can; if so, the table has been made.
pub fn ready() -> bool {
    let possible = possible();
    if possible {
        LazyLock::force(&COMB);
    }
    possible
}

/// See [`Batch::agree`].
pub fn agree(batch: Batch, theirs: &[&[u8; 65]]) -> Result<[Option<Agreed>; LANES], Unspecified> {
    assert!(theirs.len() <= LANES);
    Ok(agree_with(batch, &draw(theirs.len())?, theirs))
}

/// The same with given private keys: as many as there are points. (`Batch` says that the processor can.)
pub fn agree_with(_: Batch, ours: &[Scalar; LANES], theirs: &[&[u8; 65]]) -> [Option<Agreed>; LANES] {
    // SAFETY: nobody has a `Batch` but by `Batch::detect`, which found these features.
    let agreed = unsafe { pass(ours, theirs) };
    zeroize_stack::<STACK>();
    agreed
}

/// `count` private keys, and ones for the other lanes: drawn evenly from 1..n by drawing again what is outside, which
/// happens once in 2^32 times. One call for all of them: its price (0.65 us) does not depend on the length.
fn draw(count: usize) -> Result<[Scalar; LANES], Unspecified> {
    let mut random = Zeroizing::new([[0; 32]; LANES]);
    rand::fill(random[..count].as_flattened_mut())?;
    let mut scalars = std::array::from_fn(|_| Scalar::one());
    for (scalar, bytes) in scalars.iter_mut().zip(&mut random[..count]) {
        *scalar = loop {
            match Scalar::new(bytes) {
                Some(scalar) => break scalar,
                None => rand::fill(bytes)?,
            }
        };
    }
    Ok(scalars)
}

// Not inlined, so that its frame lies below that of its caller, who wipes what is below.
#[inline(never)]
#[target_feature(enable = "avx512f,avx512ifma")]
fn pass(ours: &[Scalar; LANES], theirs: &[&[u8; 65]]) -> [Option<Agreed>; LANES] {
    let (mut x, mut y, mut valid) = ([[0; 5]; LANES], [[0; 5]; LANES], 0);
    for (lane, point) in theirs.iter().enumerate() {
        (x[lane], y[lane]) = coordinates(point);
        // RFC 8291 section 3.1 knows the uncompressed form only.
        valid |= u8::from(point[0] == 4) << lane;
    }
    let (x, y) = (Field::from_lanes(&x), Field::from_lanes(&y));
    valid &= x.is_below_p() & y.is_below_p();
    let (points, on_curve) = Affine::new(&x, &y);
    valid &= on_curve;
    // The others compute with the generator, and nobody sees it. Public keys are no secret: `valid` may be branched on.
    let points = points.or(!valid, &COMB.generator());
    let digits = Zeroizing::new(Digits::new(ours));
    let products = multiply(&COMB, &digits, &points);
    let (x, y, shared) = (products.x.to_lanes(), products.y.to_lanes(), Zeroizing::new(products.shared.to_lanes()));
    std::array::from_fn(|lane| {
        (valid >> lane & 1 == 1).then(|| {
            let mut as_public = [4; 65];
            as_public[1..33].copy_from_slice(&bytes(x.map(|limb| limb[lane])));
            as_public[33..].copy_from_slice(&bytes(y.map(|limb| limb[lane])));
            Agreed { as_public, secret: Zeroizing::new(bytes(shared.map(|limb| limb[lane]))) }
        })
    })
}

/// The limbs of the coordinates of an uncompressed point.
fn coordinates(point: &[u8; 65]) -> ([u64; 5], [u64; 5]) {
    let (coordinates, _) = point[1..].as_chunks();
    (limbs(&coordinates[0]), limbs(&coordinates[1]))
}
