//! Rules are bounded: each app has its share, and those that nothing can meet any more leave memory and disk.

use std::sync::Arc;

use bytes::Bytes;

use crate::limits::RULES_MAX;
use crate::protocol::request::{Code, Payload, Send, Subscriptions, Target, To};
use crate::store::commit::{Apps, Done, Op, prepare_send};
use crate::store::concerned::{Command, Concerned};
use crate::store::family;
use crate::store::harness::{self, HOSTS, HarnessOnly, Setup};
use crate::store::live::Holder;

const DAY: u64 = 86_400_000;

type World = harness::World<HarnessOnly>;

fn world() -> World {
    World::start_with(Setup { browsers_per_account: 9, events_max: 64 << 20, looks_on: false }, HarnessOnly, &["shop", "news"])
}

fn only(app: &str) -> Apps {
    Arc::new(vec![Arc::from(app)])
}

fn label(n: u64) -> Target {
    Target::Label(format!("label {n}").into())
}

impl World {
    fn paused(&mut self, app: &str) -> Done {
        let browser = self.recipient(HOSTS[0], &format!("https://{}", HOSTS[0]), 1);
        let to = To::Subscriptions(Subscriptions { good: vec![browser], rejected: Vec::new() });
        let send = Send { paused: true, ..Send::new(Arc::from(app), to, Payload::opaque(Bytes::from_static(b"hello")), 3_600) };
        let op = Op::Send(Box::new(prepare_send(send, &self.preparing())));
        self.hand_over(op)
    }

    fn rules(&self) -> (usize, usize) {
        let store = self.store();
        let rules = store.rules.load();
        (rules.paused.len(), rules.cancelled.len())
    }

    /// Lets the sweep, which looks every hour, do so then.
    fn sweep_after(&mut self, later: u64) {
        let now = self.now().plus(later);
        self.run().sweep.play(now);
        self.pump();
        self.run().sweep.play_forget(now);
        self.run().writer.force();
        self.pump();
    }
}

fn overloaded(done: &Done) -> bool {
    matches!(done, Done::Failed { problem, retry_after: Some(_), .. } if problem.code == Code::Overloaded)
}

#[test]
fn an_app_has_as_many_rules_as_its_share() {
    let mut world = world();
    let pause = |n| Op::Pause { target: label(n), apps: only("shop") };
    let answers = world.hand_over_together((0..RULES_MAX).map(pause).collect());
    // A quarter of all is kept for the other app.
    let most = RULES_MAX - RULES_MAX / 4;
    assert_eq!(answers.iter().filter(|done| matches!(done, Done::Changed { .. })).count() as u64, most);
    assert!(answers[most as usize..].iter().all(overloaded));
    assert!(overloaded(&world.paused("shop")));
    assert!(overloaded(&world.hand_over(Op::Cancel { target: label(0), apps: only("shop") })));
    assert!(matches!(world.hand_over(pause(0)), Done::Changed { .. }), "it is a rule already");
    assert!(matches!(world.paused("news"), Done::Taken { .. }));
    // The count is known after a start, and comes down with what is resumed. Whose the other app's paused message is, a start does
    // not look up: it counts for the whole.
    world.checkpoint();
    world.crash();
    assert!(overloaded(&world.hand_over(pause(RULES_MAX))));
    for n in [1, 2] {
        world.hand_over(Op::Resume { target: label(n), rate: None, apps: only("shop") });
    }
    assert!(matches!(world.hand_over(pause(RULES_MAX)), Done::Changed { .. }));
    assert!(overloaded(&world.hand_over(pause(RULES_MAX + 1))));
}

#[test]
fn a_count_of_singles_looks_at_so_many_and_then_says_that_there_may_be_more() {
    let mut world = world();
    let words = |app: &str| vec![Holder::App(Arc::from(app))];
    let count = |world: &World, command, app: &str| world.store().counted(command, words(app)).concerned;
    let of = |messages, more| Concerned { messages, recipients: messages, more };
    for _ in 0..10 {
        world.paused("shop");
    }
    for command in [Command::Cancel, Command::Pause, Command::Resume] {
        assert_eq!(count(&world, command, "shop"), of(10, false), "{command:?}");
        assert_eq!(count(&world, command, "news"), of(0, false), "{command:?}");
    }
    // Still held by the app's own word.
    world.hand_over(Op::Pause { target: Target::App(Arc::from("shop")), apps: only("shop") });
    let by_label = vec![Holder::Label(Arc::from("shop"), Arc::from("label"))];
    assert_eq!(world.store().counted(Command::Resume, by_label).concerned, of(0, false));
    world.hand_over(Op::Cancel { target: Target::App(Arc::from("shop")), apps: only("shop") });
    assert_eq!(count(&world, Command::Cancel, "shop"), of(0, false), "cancelled, and not swept yet");
    for _ in 0..100 {
        world.paused("shop");
    }
    let counted = count(&world, Command::Pause, "shop");
    assert!(counted.more && (1..=64).contains(&counted.messages), "{counted:?}");
}

#[test]
fn rules_that_nothing_can_meet_any_more_are_dropped() {
    let mut world = world();
    let Done::Taken { message_id, .. } = world.paused("shop") else { panic!("it is taken") };
    world.paused("shop");
    world.hand_over(Op::Pause { target: label(0), apps: only("shop") });
    world.hand_over(Op::Cancel { target: label(1), apps: only("shop") });
    world.sweep_after(0);
    assert_eq!(world.rules(), (3, 1));
    world.sweep_after(DAY / 2);
    assert_eq!(world.rules(), (3, 1), "what was in flight may still come back");
    world.hand_over(Op::Cancel { target: Target::App(Arc::from("shop")), apps: only("shop") });
    world.sweep_after(0);
    assert_eq!(world.rules(), (3, 2));
    world.sweep_after(DAY + 1);
    // The messages have ended; the label is paused until somebody resumes it.
    assert_eq!(world.rules(), (1, 0));
    assert_eq!(world.rows(family::META, b"cancel/", b"cancel0", |_, _| true), 0);
    assert_eq!(world.rows(family::META, b"pause/", b"pause0", |_, _| true), 1);
    assert_eq!(world.status(message_id).counts.pending(), 0);
}
