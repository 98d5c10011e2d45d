//! Endpoints in canonical form stay as they are, and lead where their text says; keys are points of the curve.

#![no_main]

use std::sync::LazyLock;

use fanfare_fuzz::endpoint::{EndpointPolicy, Policy};
use fanfare_fuzz::endpoint_policy;
use fanfare_fuzz::limits::ENDPOINT_MAX;
use fanfare_fuzz::message::Origin;
use fanfare_fuzz::protocol::keys::{decode, decode_exactly, decode_point};
use libfuzzer_sys::fuzz_target;

static POLICIES: LazyLock<[EndpointPolicy; 2]> = LazyLock::new(|| [Policy::Known, Policy::Public].map(endpoint_policy));

fuzz_target!(|text: &str| {
    for policy in POLICIES.iter() {
        let Ok((endpoint, service)) = policy.check(text) else { continue };
        assert_eq!(policy.check(endpoint.as_str()), Ok((endpoint.clone(), service)));
        assert!(endpoint.bytes().len() <= ENDPOINT_MAX && endpoint.as_str().is_ascii());
        let url = url::Url::parse(endpoint.as_str()).expect("a checked endpoint is a URL");
        assert_eq!(url.as_str(), endpoint.as_str());
        assert_eq!(url.origin().ascii_serialization(), endpoint.origin_str());
        assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none());
        let origin = Origin(endpoint.origin_str().into());
        assert_eq!(url.port_or_known_default(), Some(origin.port()));
        assert_eq!(url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']')), Some(origin.host()));
        assert!(policy.service_name(service).is_some());
    }
    if let Ok(point) = decode_point(text) {
        assert!(p256::PublicKey::from_sec1_bytes(&point).is_ok());
    }
    let bytes = decode(text);
    assert_eq!(decode_exactly::<16>(text).map(Vec::from), bytes.filter(|bytes| bytes.len() == 16));
});
