//! The eight lanes against aws-lc-rs, p256 and Wycheproof.

use std::time::Instant;

use aws_lc_rs::{agreement, rand};
use p256::elliptic_curve::sec1::ToSec1Point;

use super::scalar::Scalar;
use super::{Agreed, Batch, LANES, pass};

type Key = [u8; 32];
type Point = [u8; 65];

/// n, highest byte first.
const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";

/// `None` on a processor that cannot: then there is nothing to test.
fn batch() -> Option<Batch> {
    let batch = Batch::detect();
    if batch.is_none() {
        eprintln!("this processor has no AVX-512 IFMA: not tested");
    }
    batch
}

fn number(bytes: &[u8]) -> num_bigint::BigUint {
    num_bigint::BigUint::from_bytes_be(bytes)
}

fn order() -> num_bigint::BigUint {
    num_bigint::BigUint::parse_bytes(ORDER.as_bytes(), 16).unwrap()
}

fn key(number: &num_bigint::BigUint) -> Key {
    let bytes = number.to_bytes_be();
    let mut key = [0; 32];
    key[32 - bytes.len()..].copy_from_slice(&bytes);
    key
}

fn small(number: u32) -> Key {
    key(&number.into())
}

fn random_key() -> Key {
    let mut key = [0; 32];
    loop {
        rand::fill(&mut key).unwrap();
        if Scalar::new(&key).is_some() {
            return key;
        }
    }
}

fn by_aws_lc(ours: &Key, theirs: &Point) -> Option<(Point, Key)> {
    let private = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, ours).unwrap();
    let public = private.compute_public_key().unwrap().as_ref().try_into().unwrap();
    let theirs = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, theirs);
    agreement::agree(&private, theirs, (), |secret| Ok((public, secret.try_into().unwrap()))).ok()
}

fn by_p256(ours: &Key, theirs: &Point) -> Option<(Point, Key)> {
    let private = p256::SecretKey::from_slice(ours).unwrap();
    let theirs = p256::PublicKey::from_sec1_bytes(theirs).ok()?;
    let public = private.public_key().to_sec1_point(false).as_bytes().try_into().unwrap();
    Some((public, (*private.diffie_hellman(&theirs).raw_secret_bytes()).into()))
}

fn public(ours: &Key) -> Point {
    by_p256(ours, &generator()).unwrap().0
}

fn generator() -> Point {
    p256::AffinePoint::GENERATOR.to_sec1_point(false).as_bytes().try_into().unwrap()
}

/// One pass: at most eight.
fn by_batch(batch: Batch, pairs: &[(Key, Point)]) -> [Option<(Point, Key)>; LANES] {
    let mut scalars = std::array::from_fn(|_| Scalar::one());
    for (scalar, (ours, _)) in scalars.iter_mut().zip(pairs) {
        *scalar = Scalar::new(ours).expect("in 1..n");
    }
    let theirs: Vec<&Point> = pairs.iter().map(|(_, theirs)| theirs).collect();
    pass::agree_with(batch, &scalars, &theirs).map(|agreed| agreed.map(|Agreed { as_public, secret }| (as_public, *secret)))
}

#[track_caller]
fn assert_same(batch: Batch, pairs: &[(Key, Point)], right: impl Fn(&Key, &Point) -> Option<(Point, Key)>) {
    for eight in pairs.chunks(LANES) {
        let agreed = by_batch(batch, eight);
        for (lane, (ours, theirs)) in eight.iter().enumerate() {
            assert_eq!(agreed[lane], right(ours, theirs), "lane {lane}: {:x} {:x}", number(ours), number(theirs));
        }
        assert!(agreed[eight.len()..].iter().all(Option::is_none), "nothing comes out where nothing went in");
    }
}

/// Scalars at which a method of windows, or a carry, could go wrong.
fn edge_keys() -> Vec<Key> {
    let (one, n) = (num_bigint::BigUint::from(1u32), order());
    let mut numbers = Vec::new();
    for i in 1..=130u32 {
        numbers.extend([i.into(), &n - i]);
    }
    for bit in 6..256 {
        for near in [-1i32, 0, 1] {
            let power = &one << bit;
            numbers.push(if near < 0 { power - 1u32 } else { power + near.unsigned_abs() });
        }
        // Ones from a bit up to the top, and 5-bit digits that are all alike.
        numbers.push(&n - (&one << bit));
        numbers.push(((&one << 255) - (&one << (bit - 1))) % &n);
    }
    for pattern in [0x11u8, 0x33, 0x55, 0x77, 0xaa, 0xcc, 0xee, 0x0f, 0xf0, 0x7f, 0x80, 0xfe] {
        numbers.push(number(&[pattern; 32]) % &n);
    }
    for digit in 1..32u32 {
        numbers.push((0..51).fold(num_bigint::BigUint::ZERO, |all, _| (all << 5) + digit));
        // What makes exceptional cases of combs that start at the other end, or have other windows.
        for bit in [240, 245, 250, 252, 255] {
            numbers.push((num_bigint::BigUint::from(2 * digit) << bit) % &n);
            numbers.push((&n * 32u32 - (num_bigint::BigUint::from(2 * digit) << bit)) % &n);
        }
    }
    numbers.retain(|number| *number != num_bigint::BigUint::ZERO && *number < n);
    numbers.sort();
    numbers.dedup();
    numbers.iter().map(key).collect()
}

/// The generator and its negative, some multiples, and points whose first coordinate is small, 0 among them (it is on the curve).
fn edge_points() -> Vec<Point> {
    let mut points: Vec<Point> = [1, 2, 3, 31, 32, 33].map(|times| public(&small(times))).to_vec();
    points.extend([1u32, 2, 32].map(|less| public(&key(&(order() - less)))));
    for x in (0..40u32).chain([u32::MAX]) {
        for sign in [2, 3] {
            let compressed = [&[sign][..], &small(x)].concat();
            if let Ok(point) = p256::PublicKey::from_sec1_bytes(&compressed) {
                points.push(point.to_sec1_point(false).as_bytes().try_into().unwrap());
            }
        }
    }
    assert_eq!(points[9][1..33], [0; 32], "x = 0 is on the curve");
    points
}

#[test]
fn edge_scalars_by_edge_points() {
    let Some(batch) = batch() else { return };
    let (keys, points) = (edge_keys(), edge_points());
    // Every scalar with the generator and a point that changes, every point with the scalars that are near 0 and n.
    let mut pairs: Vec<_> = keys.iter().map(|key| (*key, points[0])).collect();
    pairs.extend(keys.iter().zip(points.iter().cycle()).map(|(key, point)| (*key, *point)));
    for near in keys.iter().take(40).chain(keys.iter().rev().take(40)) {
        pairs.extend(points.iter().map(|point| (*near, *point)));
    }
    assert!(pairs.len() > 5_000, "{}", pairs.len());
    assert_same(batch, &pairs, by_aws_lc);
    assert_same(batch, &pairs[..keys.len()], by_p256);
}

/// The scalar for which the secret is the first coordinate of the generator, or of the point with x = 0: k * (1 / k) = 1.
#[test]
fn secrets_at_the_edge() {
    let Some(batch) = batch() else { return };
    let mut pairs = Vec::new();
    for _ in 0..20 {
        let ours = random_key();
        let inverse = number(&ours).modpow(&(order() - 2u32), &order());
        for target in edge_points() {
            let target = p256::PublicKey::from_sec1_bytes(&target).unwrap().to_projective();
            let inverse = p256::NonZeroScalar::try_from(&key(&inverse)[..]).unwrap();
            let theirs = (target * *inverse).to_affine().to_sec1_point(false);
            pairs.push((ours, theirs.as_bytes().try_into().unwrap()));
        }
    }
    assert_same(batch, &pairs, by_aws_lc);
}

#[test]
fn every_lane_and_every_partly_filled_slice() {
    let Some(batch) = batch() else { return };
    let pairs: Vec<_> = (0..LANES).map(|_| (random_key(), public(&random_key()))).collect();
    for turn in 0..LANES {
        let mut turned = pairs.clone();
        turned.rotate_left(turn);
        for filled in 0..=LANES {
            assert_same(batch, &turned[..filled], by_aws_lc);
        }
    }
}

#[test]
fn what_is_no_point_fails_alone() {
    let Some(batch) = batch() else { return };
    let p = number(&hex("ffffffff00000001000000000000000000000000ffffffffffffffffffffffff"));
    let good = public(&random_key());
    let with = |at: usize, byte: u8| {
        let mut point = good;
        point[at] = byte;
        point
    };
    let coordinates = |x: &Key, y: &[u8]| [&[4], &x[..], y].concat().try_into().unwrap();
    let zero_x = edge_points()[9];
    let mut bad: Vec<Point> = vec![
        [0; 65],
        [4; 65],
        [0xff; 65],
        with(64, good[64] ^ 1),
        with(1, good[1] ^ 0x80),
        coordinates(&[0; 32], &[0; 32]),
        coordinates(&[0xff; 32], &good[33..]),
        coordinates(&key(&p), &good[33..]),
        // x = p in place of 0: congruent to a point, but no coordinate.
        coordinates(&key(&p), &zero_x[33..]),
        // The same for x = 5, which has a point too, and y = p + y where that fits in 32 bytes.
        coordinates(&key(&(&p + 5u32)), &p256_y(5)),
    ];
    bad.extend([0, 1, 2, 3, 5, 6, 7, 0x84].map(|first| with(0, first)));
    // The other half of the points with these first coordinates is on the curve's twist: y^2 is no square.
    for bad in bad {
        for lane in 0..LANES {
            for filled in lane + 1..=LANES {
                let mut pairs: Vec<_> = (0..filled).map(|_| (random_key(), good)).collect();
                pairs[lane].1 = bad;
                let agreed = by_batch(batch, &pairs);
                assert_eq!(agreed[lane], None, "{:x}", number(&bad));
                for (other, (ours, theirs)) in pairs.iter().enumerate().filter(|(other, _)| *other != lane) {
                    assert_eq!(agreed[other], by_aws_lc(ours, theirs));
                }
            }
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    num_bigint::BigUint::parse_bytes(text.as_bytes(), 16).unwrap().to_bytes_be()
}

fn p256_y(x: u32) -> [u8; 32] {
    let compressed = [&[2][..], &small(x)].concat();
    let point = p256::PublicKey::from_sec1_bytes(&compressed).unwrap().to_sec1_point(false);
    point.as_bytes()[33..].try_into().unwrap()
}

#[test]
fn a_private_key_is_in_its_range() {
    assert!(Scalar::new(&[0; 32]).is_none());
    assert!(Scalar::new(&[0xff; 32]).is_none());
    for (more, valid) in [(-2i32, true), (-1, true), (0, false), (1, false)] {
        let number = if more < 0 { order() - more.unsigned_abs() } else { order() + more.unsigned_abs() };
        assert_eq!(Scalar::new(&key(&number)).is_some(), valid, "n {more:+}");
    }
    for number in [1, 2] {
        assert!(Scalar::new(&small(number)).is_some());
    }
}

/// Wycheproof's vectors, by raw points and by DER, whose public keys are taken by the p256 crate to raw points. What that does not
/// take never comes this far.
#[test]
fn wycheproof() {
    use p256::pkcs8::DecodePublicKey;
    use wycheproof::TestResult;
    use wycheproof::ecdh::{TestName, TestSet};

    let Some(batch) = batch() else { return };
    let mut seen = [0, 0];
    for name in [TestName::EcdhSecp256r1, TestName::EcdhSecp256r1Ecpoint] {
        for group in TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let raw = match name {
                    TestName::EcdhSecp256r1Ecpoint => test.public_key.to_vec(),
                    _ => match p256::PublicKey::from_public_key_der(&test.public_key) {
                        Ok(key) => key.to_sec1_point(false).as_bytes().to_vec(),
                        Err(_) => continue,
                    },
                };
                let private = &test.private_key[test.private_key.len().saturating_sub(32)..];
                let (Ok(theirs), ours) = (Point::try_from(raw), key(&number(private))) else { continue };
                if Scalar::new(&ours).is_none() {
                    continue;
                }
                let pairs = [(ours, theirs); LANES];
                for agreed in by_batch(batch, &pairs) {
                    match (test.result, agreed) {
                        (TestResult::Invalid, agreed) => assert_eq!(agreed, None, "{}: {}", test.tc_id, test.comment),
                        (_, agreed) => {
                            let (public, secret) = agreed.expect("valid");
                            assert_eq!(secret[..], test.shared_secret[..], "{}: {}", test.tc_id, test.comment);
                            assert_eq!(Some((public, secret)), by_aws_lc(&ours, &theirs));
                        }
                    }
                }
                seen[usize::from(test.result == TestResult::Invalid)] += 1;
            }
        }
    }
    assert!(seen[0] > 400 && seen[1] > 5, "{seen:?}");
}

/// `FANFARE_P256_CASES` pairs (4,000 if it is not set), each against aws-lc-rs and against p256. The peer of a pass is the public
/// key of the one before.
#[test]
fn random_pairs() {
    let Some(batch) = batch() else { return };
    let cases = std::env::var("FANFARE_P256_CASES").map_or(4_000, |cases| cases.parse().unwrap());
    let mut points: [Point; LANES] = std::array::from_fn(|_| public(&random_key()));
    for turn in 0..cases / LANES {
        let pairs: [(Key, Point); LANES] = std::array::from_fn(|lane| (random_key(), points[(lane + turn) % LANES]));
        let agreed = by_batch(batch, &pairs);
        for (lane, (ours, theirs)) in pairs.iter().enumerate() {
            let told = || format!("lane {lane}: {:x} {:x}", number(ours), number(theirs));
            assert_eq!(agreed[lane], by_aws_lc(ours, theirs), "{}", told());
            assert_eq!(agreed[lane], by_p256(ours, theirs), "{}", told());
            points[lane] = agreed[lane].expect("valid").0;
        }
    }
}

#[test]
fn keys_are_drawn_and_agree() {
    let Some(batch) = batch() else { return };
    let browsers: [Key; LANES] = std::array::from_fn(|_| random_key());
    let points = browsers.map(|key| public(&key));
    let mut seen = std::collections::HashSet::new();
    for filled in 0..=LANES {
        let theirs: Vec<&Point> = points[..filled].iter().collect();
        let agreed = batch.agree(&theirs).unwrap();
        for (lane, agreed) in agreed.into_iter().enumerate() {
            assert_eq!(agreed.is_some(), lane < filled);
            let Some(agreed) = agreed else { continue };
            assert_eq!(by_p256(&browsers[lane], &agreed.as_public).unwrap().1, *agreed.secret);
            assert!(seen.insert(agreed.as_public), "a key pair came twice");
        }
    }
}

/// Whether the time tells a fixed private key from random ones: Welch's t over two classes measured in turn by lot, so that what
/// the machine does meanwhile is the same for both; the slower half is left out. Without a leak t lies within 2. Half a
/// microsecond more for even keys, in 70, gives 5 to 25 mostly; a doubling more or less far beyond. A busy machine has four attempts.
#[test]
fn time_does_not_tell_the_private_key() {
    const PASSES: usize = 6_000;
    let Some(batch) = batch() else { return };
    let theirs = public(&random_key());
    let theirs = [&theirs; LANES];
    let fixed = [small(1), small(2), key(&(order() - 1u32)), [0x55; 32]].map(|key| [key; LANES]);
    for (number, fixed) in fixed.iter().enumerate() {
        let mut t = 0.0;
        for _attempt in 0..4 {
            let mut lot = vec![0; PASSES];
            rand::fill(&mut lot).unwrap();
            // Made beforehand, all alike: no class has warmer memory than the other.
            let keys: Vec<[Scalar; LANES]> = lot
                .iter()
                .map(|lot| if lot & 1 == 0 { *fixed } else { std::array::from_fn(|_| random_key()) })
                .map(|keys| keys.map(|key| Scalar::new(&key).unwrap()))
                .collect();
            let mut times = [Vec::new(), Vec::new()];
            for (lot, keys) in lot.iter().zip(&keys) {
                let start = Instant::now();
                std::hint::black_box(pass::agree_with(batch, keys, &theirs));
                times[usize::from(lot & 1)].push(start.elapsed().as_nanos() as f64);
            }
            t = welch(times);
            eprintln!("key {number}: t = {t:.1}");
            if t.abs() < 5.0 {
                break;
            }
        }
        assert!(t.abs() < 5.0, "key {number}: t = {t:.1}");
    }
}

/// Welch's t of two samples without their slower halves, which are cut at the same time.
fn welch(times: [Vec<f64>; 2]) -> f64 {
    let mut all = times.concat();
    all.sort_by(f64::total_cmp);
    let cut = all[all.len() / 2];
    let [(mean_a, error_a), (mean_b, error_b)] = times.map(|times| {
        let kept: Vec<f64> = times.into_iter().filter(|time| *time <= cut).collect();
        let len = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / len;
        (mean, kept.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (len - 1.0) / len)
    });
    (mean_a - mean_b) / (error_a + error_b).sqrt()
}
