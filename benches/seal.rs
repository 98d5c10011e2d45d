//! Sealing by size of the payload, back end and length of the slice, and the key agreement alone, which is most of it, by back end
//! and length of the slice: `cargo bench --bench seal`. Times are per slice; the counter tells messages a second.

mod fixture;

use divan::Bencher;
use divan::counter::ItemsCount;
use fanfare::encrypt::payload::{Agreement, Plain, Sealer};
use fanfare::message::Encoding;

const SIZES: [usize; 4] = [0, 250, 1_000, 3_993];

fn main() {
    divan::main();
}

/// An empty payload takes 1.5 us beside the key agreement.
#[divan::bench_group]
mod agreement {
    use super::*;

    /// The batch where the processor has it; else aws-lc-rs once more.
    #[divan::bench(consts = [1, 2, 4, 8])]
    fn batch<const SLICE: usize>(bencher: Bencher<'_, '_>) {
        seal::<SLICE>(bencher, 0, Agreement::fastest(), Encoding::Aes128gcm);
    }

    #[divan::bench(consts = [1, 2, 4, 8])]
    fn aws_lc<const SLICE: usize>(bencher: Bencher<'_, '_>) {
        seal::<SLICE>(bencher, 0, Agreement::AwsLc, Encoding::Aes128gcm);
    }

    #[divan::bench(consts = [1, 2, 4, 8])]
    fn p256<const SLICE: usize>(bencher: Bencher<'_, '_>) {
        seal::<SLICE>(bencher, 0, Agreement::P256, Encoding::Aes128gcm);
    }
}

#[divan::bench(args = SIZES, consts = [1, 8, 64])]
fn batch<const SLICE: usize>(bencher: Bencher<'_, '_>, size: usize) {
    seal::<SLICE>(bencher, size, Agreement::fastest(), Encoding::Aes128gcm);
}

#[divan::bench(args = SIZES, consts = [1, 8, 64])]
fn aws_lc<const SLICE: usize>(bencher: Bencher<'_, '_>, size: usize) {
    seal::<SLICE>(bencher, size, Agreement::AwsLc, Encoding::Aes128gcm);
}

#[divan::bench(args = SIZES, consts = [1, 8, 64])]
fn p256<const SLICE: usize>(bencher: Bencher<'_, '_>, size: usize) {
    seal::<SLICE>(bencher, size, Agreement::P256, Encoding::Aes128gcm);
}

#[divan::bench(args = SIZES, consts = [8])]
fn aesgcm<const SLICE: usize>(bencher: Bencher<'_, '_>, size: usize) {
    seal::<SLICE>(bencher, size, Agreement::AwsLc, Encoding::Aesgcm);
}

fn seal<const SLICE: usize>(bencher: Bencher<'_, '_>, size: usize, agreement: Agreement, encoding: Encoding) {
    let keys: [[u8; 65]; SLICE] = fixture::points();
    let (payload, auth) = (vec![b'x'; size], [7; 16]);
    let slice = keys.each_ref().map(|p256dh| Plain { p256dh, auth: &auth, encoding, payload: &payload, pad_to: 0 });
    let mut sealer = Sealer::new(agreement);
    let mut out = Vec::with_capacity(SLICE);
    bencher.counter(ItemsCount::new(SLICE)).bench_local(|| {
        out.clear();
        sealer.seal(&slice, &mut out);
        assert!(out.iter().all(Result::is_ok));
    });
}
