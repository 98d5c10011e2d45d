//! Subscriptions: what a browser has after `pushManager.subscribe()`.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::crowd::Crowd;
use super::decrypt::BrowserKeys;

/// The service whose dialect is spoken: the form of its errors and its own rules (docs/push-services.md 3.1 to 3.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// RFC 8030 to the letter.
    #[default]
    Generic,
    Fcm,
    Mozilla,
    Apple,
    Wns,
}

impl Vendor {
    /// The vendor behind a host name.
    pub fn of_host(host: &str) -> Vendor {
        let within = |domain: &str| host == domain || host.ends_with(&format!(".{domain}"));
        match host {
            "fcm.googleapis.com" | "jmt17.google.com" => Vendor::Fcm,
            _ if within("push.services.mozilla.com") => Vendor::Mozilla,
            _ if within("push.apple.com") => Vendor::Apple,
            _ if within("notify.windows.com") => Vendor::Wns,
            _ => Vendor::Generic,
        }
    }

    fn path(self, token: &str) -> String {
        match self {
            Vendor::Generic => format!("/push/{token}"),
            Vendor::Fcm => format!("/fcm/send/{token}"),
            Vendor::Mozilla => format!("/wpush/v2/{token}"),
            Vendor::Apple => format!("/{token}"),
            Vendor::Wns => format!("/w/?token={token}"),
        }
    }
}

/// How subscriptions are to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Subscribe {
    /// Only this application server's key (base64url of 65 bytes) may send (RFC 8292 section 4).
    pub application_server_key: Option<String>,
    /// The endpoints lie under this host, port 443, which is reached through the mock's proxy.
    pub host: Option<String>,
    /// The dialect; that of `host` unless told.
    pub vendor: Option<Vendor>,
    /// The browser knows the older encoding only: `aesgcm` is expected, and told in `contentEncoding`.
    pub aesgcm: bool,
}

/// A subscription of the mock: the browser's whole knowledge.
#[derive(Clone)]
pub struct Subscription {
    /// The push resource's URL.
    pub endpoint: String,
    /// The part of the endpoint that names it; [`Received`](super::Received) and [`Scope`](super::Scope) use it.
    pub token: String,
    /// Private and public key, and `auth`.
    pub keys: BrowserKeys,
    /// `https://host[:port]`: the audience a VAPID token must have.
    pub origin: Arc<str>,
    /// The key it is restricted to.
    pub application_server_key: Option<Arc<str>>,
    /// The dialect of its push service.
    pub vendor: Vendor,
    /// Whether it wants the older encoding.
    pub aesgcm: bool,
}

impl Subscription {
    pub(super) fn make(origin: &Arc<str>, how: &Subscribe) -> Subscription {
        let mut random = [0; 16];
        openssl::rand::rand_bytes(&mut random).expect("the system has randomness");
        let token = URL_SAFE_NO_PAD.encode(random);
        let vendor = how.vendor.unwrap_or_else(|| how.host.as_deref().map_or(Vendor::Generic, Vendor::of_host));
        Subscription {
            endpoint: format!("{origin}{}", vendor.path(&token)),
            token,
            keys: BrowserKeys::generate(),
            origin: origin.clone(),
            application_server_key: how.application_server_key.as_deref().map(Arc::from),
            vendor,
            aesgcm: how.aesgcm,
        }
    }

    /// `p256dh` as a browser writes it.
    pub fn p256dh(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.keys.public)
    }

    /// `auth` as a browser writes it.
    pub fn auth(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.keys.auth)
    }

    /// What the browser's `JSON.stringify(subscription)` gives; with `contentEncoding` if it is an old browser.
    pub fn json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({
            "endpoint": self.endpoint,
            "expirationTime": null,
            "keys": {"p256dh": self.p256dh(), "auth": self.auth()},
        });
        if self.aesgcm {
            json["contentEncoding"] = "aesgcm".into();
        }
        json
    }
}

/// All subscriptions, found by token.
#[derive(Default)]
pub(super) struct Registry {
    places: HashMap<Box<str>, u32>,
    known: Vec<Known>,
    crowds: Vec<Arc<Crowd>>,
}

/// Which subscription.
pub(super) enum Place {
    One(u32),
    Member(Arc<Crowd>, u32),
}

/// What is needed to judge a request.
#[derive(Clone)]
pub(super) struct Known {
    pub keys: BrowserKeys,
    pub origin: Arc<str>,
    pub application_server_key: Option<Arc<str>>,
    pub vendor: Vendor,
    pub aesgcm: bool,
}

impl Registry {
    pub fn add(&mut self, subscription: &Subscription) {
        let place = u32::try_from(self.known.len()).expect("fewer than four thousand million subscriptions");
        self.places.insert(subscription.token.as_str().into(), place);
        self.known.push(Known {
            keys: subscription.keys.clone(),
            origin: subscription.origin.clone(),
            application_server_key: subscription.application_server_key.clone(),
            vendor: subscription.vendor,
            aesgcm: subscription.aesgcm,
        });
    }

    /// Its number.
    pub fn add_crowd(&mut self, crowd: Arc<Crowd>) -> usize {
        self.crowds.push(crowd);
        self.crowds.len() - 1
    }

    /// The crowd of this number.
    pub fn crowd(&self, number: usize) -> Option<Arc<Crowd>> {
        self.crowds.get(number).cloned()
    }

    /// Where it is, and what is known of it.
    pub fn find(&self, token: &str) -> Option<(Place, Known)> {
        if let Some(place) = self.places.get(token) {
            return Some((Place::One(*place), self.known[*place as usize].clone()));
        }
        let (crowd, number) = self.crowds.iter().find_map(|crowd| Some((crowd, crowd.members.number(token)?)))?;
        let known = Known {
            keys: crowd.members.keys(number),
            origin: crowd.members.origin().clone(),
            application_server_key: None,
            vendor: Vendor::Generic,
            aesgcm: false,
        };
        Some((Place::Member(crowd.clone(), number), known))
    }
}

/// The token in a request's path, whoever's dialect it is.
pub(super) fn token_of(uri: &http::Uri) -> &str {
    if let Some(query) = uri.query() {
        for part in query.split('&') {
            if let Some(token) = part.strip_prefix("token=") {
                return token;
            }
        }
    }
    uri.path().rsplit('/').next().unwrap_or("")
}
