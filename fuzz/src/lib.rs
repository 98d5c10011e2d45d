//! The daemon's pure modules, taken by their paths so that `crate::message` and the like mean the same here as there, without
//! the store and the sockets behind them; and what the targets share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::Messages;
use endpoint::{AllowedHost, EndpointPolicy, Policy};
use ingest::line::Rules;
use message::{Service, UnixMillis};

#[path = "../../src/config/mod.rs"]
pub mod config;
#[path = "../../src/endpoint.rs"]
pub mod endpoint;
#[path = "../../src/ids.rs"]
pub mod ids;
#[path = "../../src/limits.rs"]
pub mod limits;
#[path = "../../src/message.rs"]
pub mod message;
#[path = "../../src/printable.rs"]
pub mod printable;

#[path = "../../src/protocol/mod.rs"]
pub mod protocol;
#[path = "../../src/template.rs"]
pub mod template;

#[path = "../../src/ingest"]
pub mod ingest {
    pub mod line;
}

#[path = "../../src/outcome"]
pub mod outcome {
    pub mod retry_after;
    pub mod verdict;
}

/// 2026-11-22T10:30:00Z
pub const NOW: UnixMillis = UnixMillis(1_795_343_400_000);

/// A policy with some entries of every kind.
pub fn endpoint_policy(policy: Policy) -> EndpointPolicy {
    let host = |host: &str, port| AllowedHost { host: host.to_owned(), port };
    EndpointPolicy::new(
        policy,
        vec![
            (host("push.example.net", None), Service(16)),
            (host("localhost", Some(8443)), Service(17)),
            (host("127.0.0.1", None), Service(18)),
            (host("::1", Some(8443)), Service(19)),
        ],
    )
}

/// A socket with two apps, of which one lists its scopes.
pub fn rules() -> Rules {
    let messages = Messages {
        ttl_default: 2_419_200,
        ttl_max: 2_419_200,
        ttl0_patience: Duration::from_secs(5),
        retention: Duration::from_secs(604_800),
        at_max: Duration::from_secs(7_776_000),
        max_pending: 20_000_000,
        max_open: 20_000,
    };
    let apps = BTreeMap::from([(Arc::from("default"), Vec::new()), (Arc::from("shop"), Vec::new())]);
    let scopes = BTreeMap::from([(Arc::from("shop"), [Arc::from("news")].into())]);
    Rules::new(apps, Arc::new(endpoint_policy(Policy::Public)), messages).with_scopes(scopes)
}
