//! What an answer says beside its status: headers and body of each vendor -> facts. It judges nothing.

use http::HeaderMap;
use serde_json::Value;

/// The word of WNS beside the status (docs/push-services.md 3.4); `received` is no news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WnsStatus {
    Dropped,
    ChannelThrottled,
    AppThrottled,
}

pub(super) fn wns_status(headers: &HeaderMap) -> Option<WnsStatus> {
    ["x-wns-status", "x-wns-notificationstatus"].into_iter().find_map(|name| {
        let word = headers.get(name)?.to_str().ok()?.trim();
        [
            ("dropped", WnsStatus::Dropped),
            ("channelthrottled", WnsStatus::ChannelThrottled),
            ("appthrottled", WnsStatus::AppThrottled),
        ]
        .into_iter()
        .find_map(|(known, status)| known.eq_ignore_ascii_case(word).then_some(status))
    })
}

/// An error in the service's own words. Empty, HTML, torn or not even text: then there are no words, and the status decides.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Mozilla's number (docs/push-services.md 3.2); null at times.
    pub(super) errno: Option<u64>,
    /// Apple's word (docs/push-services.md 3.3).
    pub(super) reason: Option<String>,
    /// Body and WNS's description (docs/push-services.md 3.4), in lower case.
    text: String,
}

impl Told {
    pub(super) fn of(headers: &HeaderMap, body: &[u8]) -> Told {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let member = |name| json.as_ref().and_then(|json| json.get(name));
        let errno = member("errno").and_then(Value::as_u64);
        let reason = member("reason").and_then(Value::as_str).map(str::to_owned);
        let mut text = String::from_utf8_lossy(body).to_ascii_lowercase();
        if let Some(description) = headers.get("x-wns-error-description") {
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(description.as_bytes()).to_ascii_lowercase());
        }
        Told { errno, reason, text }
    }

    pub(super) fn says(&self, lower_case: &str) -> bool {
        self.text.contains(lower_case)
    }

    /// The texts that mean: this subscription was made with another key.
    pub(super) fn wrong_key(&self) -> bool {
        // FCM (docs/push-services.md 3.1): "the VAPID credentials in the authorization header do not correspond to the
        // credentials used to
        // create the subscriptions."
        self.says("do not correspond to the credentials")
            // Mozilla (docs/push-services.md 3.7): "VAPID public key mismatch".
            || self.says("public key mismatch")
            // WNS (docs/push-services.md 3.4): "JWT Authentication Failed", "public key ... channel Url".
            || self.says("jwt authentication failed")
            || self.says("public key") && self.says("channel url")
    }

    /// The texts that mean: this token is not valid, whatever the subscription.
    pub(super) fn wrong_token(&self) -> bool {
        const TEXTS: [&str; 8] = [
            // FCM (docs/push-services.md 3.1).
            "invalid jwt",
            // Mozilla (docs/push-services.md 3.7).
            "missing vapid",
            "invalid vapid",
            "unknown auth scheme",
            "expiredsignature",
            "token expiration is too long",
            "invalidsignature",
            "invalidalgorithm",
        ];
        TEXTS.into_iter().any(|text| self.says(text))
    }
}
