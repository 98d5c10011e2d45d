//! What makes a body the recipient's own: `cargo bench --bench fill`. Times are per recipient; `compile` is once a message.

use divan::Bencher;
use fanfare::ids::{Ids, Since, VisibleId};
use fanfare::limits::RECEIPT_CHARS;
use fanfare::message::{Attributes, MessageId, SubscriptionId, UnixMillis};
use fanfare::receipt::Receipts;
use fanfare::template::{Form, check};

fn main() {
    divan::main();
}

/// A usual notification.
fn body() -> (String, u16) {
    let zeros = "0".repeat(RECEIPT_CHARS);
    let body = format!(
        r#"{{"web_push":8030,"notification":{{"title":"Hello {{{{name|friend}}}}","body":"Your order {{{{order}}}} leaves {{{{town|our house}}}} today: be at home at noon.","navigate":"https://shop.example/orders/{{{{order}}}}","lang":"{{{{lang|en}}}}","data":{{"receipt":"{zeros}"}}}}}}"#
    );
    let at = u16::try_from(body.find(&zeros).expect("it is there")).expect("short");
    (body, at)
}

fn attributes() -> Attributes {
    let all = [("name", "\"Anna\""), ("order", "4711"), ("town", "\"Łódź\""), ("lang", "\"pl\""), ("plan", "\"gold\"")];
    all.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

#[divan::bench]
fn compile(bencher: Bencher<'_, '_>) {
    let (body, at) = body();
    bencher.bench_local(|| Form::new(body.as_bytes(), true, Some(at)));
}

#[divan::bench]
fn door(bencher: Bencher<'_, '_>) {
    let (body, at) = body();
    bencher.bench_local(|| check(body.as_bytes(), Some(at)));
}

#[divan::bench(args = [false, true])]
fn fill(bencher: Bencher<'_, '_>, template: bool) {
    let (body, at) = body();
    let form = Form::new(body.as_bytes(), template, Some(at));
    let (attributes, receipt, mut out) = (attributes(), [b'r'; RECEIPT_CHARS], Vec::new());
    bencher.bench_local(|| {
        out.clear();
        form.fill(Some(&attributes), Some(&receipt), &mut out);
        out.len()
    });
}

#[divan::bench]
fn issue(bencher: Bencher<'_, '_>) {
    let receipts = Receipts::new(&[7; 32]);
    let mut n = 0_u128;
    bencher.bench_local(|| {
        n += 1;
        receipts.issue(VisibleId::from_bytes(n.to_be_bytes()), SubscriptionId([7; 12]))
    });
}

/// What a client sees of a message id: once for each reply, event, and message with receipts.
#[divan::bench]
fn show(bencher: Bencher<'_, '_>) {
    let ids = Ids::new(&[7; 32], Since::default());
    let mut n = 0;
    bencher.bench_local(|| {
        n += 1;
        ids.show(MessageId::new(UnixMillis(1_795_343_400_123), n, 0, 7))
    });
}
