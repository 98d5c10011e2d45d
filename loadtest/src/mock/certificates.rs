//! A certificate authority made for one run, and what it signs.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// Names in every certificate besides those asked for: loopback, and a host of each known push service.
const NAMES: [&str; 8] = [
    "127.0.0.1",
    "::1",
    "localhost",
    "fcm.googleapis.com",
    "jmt17.google.com",
    "updates.push.services.mozilla.com",
    "web.push.apple.com",
    "wns2-par02p.notify.windows.com",
];

/// The ways a connection can be greeted.
pub(super) struct Acceptors {
    /// h2 and http/1.1.
    pub usual: TlsAcceptor,
    pub http1_only: TlsAcceptor,
    /// Signed by an authority that was thrown away.
    pub untrusted: TlsAcceptor,
    /// The authority, for the sender's `extra_roots`.
    pub authority_pem: String,
}

impl Acceptors {
    /// Fresh keys; `hosts` are further names.
    pub fn make(hosts: &[String]) -> Acceptors {
        let authority = authority("Fanfare mock push service");
        let leaf = leaf(&authority, hosts);
        let stranger = authority_and_leaf_of_a_stranger(hosts);
        Acceptors {
            usual: acceptor(&leaf, &[b"h2", b"http/1.1"]),
            http1_only: acceptor(&leaf, &[b"http/1.1"]),
            untrusted: acceptor(&stranger, &[b"h2", b"http/1.1"]),
            authority_pem: authority.pem(),
        }
    }
}

type Leaf = (CertificateDer<'static>, KeyPair);

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("keys can be made");
    CertifiedIssuer::self_signed(params, key).expect("the parameters are fixed and good")
}

fn leaf(authority: &CertifiedIssuer<'static, KeyPair>, hosts: &[String]) -> Leaf {
    let names: Vec<String> = NAMES.iter().map(|name| (*name).to_owned()).chain(hosts.iter().cloned()).collect();
    let mut params = CertificateParams::new(names).expect("host names of certificates are ASCII");
    params.distinguished_name.push(DnType::CommonName, "push");
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().expect("keys can be made");
    let certificate = params.signed_by(&key, authority).expect("the parameters are fixed and good");
    (certificate.der().clone(), key)
}

fn authority_and_leaf_of_a_stranger(hosts: &[String]) -> Leaf {
    leaf(&authority("A stranger"), hosts)
}

fn acceptor((certificate, key): &Leaf, alpn: &[&[u8]]) -> TlsAcceptor {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has both versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("key and certificate belong together");
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}
