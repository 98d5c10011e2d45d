//! TLS towards push services: the system's roots and those of `deliver.extra_roots`; h2 first, then HTTP/1.1, by ALPN.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::StartError;

/// Whose certificates are trusted beside `extra_roots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The system's.
    System,
    /// Nobody else's: for a closed network, and for tests.
    ExtraOnly,
}

/// Reads the roots anew. Fails if `extra` cannot be read or holds no certificate, or if nobody at all would be trusted.
/// Single files of the system that cannot be read are skipped: the rest may well do.
pub(super) fn client_config(roots: Roots, extra: Option<&Path>) -> Result<Arc<ClientConfig>, StartError> {
    let mut store = RootCertStore::empty();
    if roots == Roots::System {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a file of the system's trusted certificates cannot be read");
        }
        store.add_parsable_certificates(found.certs);
    }
    if let Some(path) = extra {
        let unreadable = |reason: String| StartError::ExtraRoots { path: path.to_owned(), reason };
        let mut some = false;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))? {
            let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
            store.add(certificate).map_err(|error| unreadable(error.to_string()))?;
            some = true;
        }
        if !some {
            return Err(unreadable("it holds no certificate".to_owned()));
        }
    }
    if store.is_empty() {
        return Err(StartError::NoRoots);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(client_config(Roots::System, Some(file.path())), Err(StartError::ExtraRoots { .. })));
        assert!(matches!(client_config(Roots::System, Some(Path::new("/nonexistent"))), Err(StartError::ExtraRoots { .. })));
        assert!(matches!(client_config(Roots::ExtraOnly, None), Err(StartError::NoRoots)));
    }
}
