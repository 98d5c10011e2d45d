//! What both senders share: the orders of `compare.py`, its lines, and VAPID tokens that are made once.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::task::JoinSet;
use web_push::{
    ContentEncoding, SubscriptionInfo, Urgency, VapidSignature, VapidSignatureBuilder, WebPushMessage, WebPushMessageBuilder,
};

/// Whatever goes wrong ends the measurement.
pub type Failure = Box<dyn Error + Send + Sync>;

/// How long a token is used: half of what RFC 8292 allows, which is what the web-push crate signs.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// What is to be done; `compare.py` writes it.
#[derive(Deserialize)]
pub struct Work {
    /// The mock push service's authority, PEM.
    pub ca: PathBuf,
    warm_up: PathBuf,
    lines: PathBuf,
    in_flight: usize,
    ttl: u32,
    subject: String,
    private_key: String,
    /// Make a token for every message.
    sign_each: bool,
}

/// A message: who gets it, and what.
#[derive(Deserialize)]
struct Line {
    subscription: SubscriptionInfo,
    payload: String,
}

impl Work {
    /// What the file says that is named on the command line.
    pub fn ordered() -> Result<Work, Failure> {
        let path = std::env::args_os().nth(1).ok_or("which work? `make compare` names a file with it")?;
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Posts the warm-up; then, each time it is told, the lines, and the end.
    pub async fn carry_out<F, P>(self, post: F) -> Result<(), Failure>
    where
        F: Fn(WebPushMessage) -> P + Clone + Send + 'static,
        P: Future<Output = Result<(), Failure>> + Send,
    {
        let signer = Arc::new(Signer::new(self.subject, self.private_key, self.sign_each));
        for (path, told) in [(&self.warm_up, "ready"), (&self.lines, "done")] {
            send(path, self.in_flight, self.ttl, &signer, &post).await?;
            println!("{told}");
            std::io::stdout().flush()?;
            std::io::stdin().read_line(&mut String::new())?;
        }
        Ok(())
    }
}

/// Sends the lines of a file, so many of them at a time.
async fn send<F, P>(path: &Path, in_flight: usize, ttl: u32, signer: &Arc<Signer>, post: &F) -> Result<(), Failure>
where
    F: Fn(WebPushMessage) -> P + Clone + Send + 'static,
    P: Future<Output = Result<(), Failure>> + Send,
{
    let lines = Arc::new(tokio::sync::Mutex::new(BufReader::new(File::open(path).await?).lines()));
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let (lines, signer, post) = (lines.clone(), signer.clone(), post.clone());
        tasks.spawn(async move {
            while let Some(line) = next(&lines).await? {
                post(sealed(&line, ttl, &signer)?).await?;
            }
            Ok::<(), Failure>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

async fn next(lines: &tokio::sync::Mutex<Lines<BufReader<File>>>) -> std::io::Result<Option<String>> {
    lines.lock().await.next_line().await
}

/// The message of a line, encrypted and signed.
fn sealed(line: &str, ttl: u32, signer: &Signer) -> Result<WebPushMessage, Failure> {
    let line: Line = serde_json::from_str(line)?;
    let mut message = WebPushMessageBuilder::new(&line.subscription);
    message.set_ttl(ttl);
    message.set_urgency(Urgency::Normal);
    message.set_vapid_signature(signer.signature(&line.subscription)?);
    message.set_payload(ContentEncoding::Aes128Gcm, line.payload.as_bytes());
    Ok(message.build()?)
}

/// Makes VAPID tokens, and keeps one for each push service.
struct Signer {
    subject: String,
    private_key: String,
    sign_each: bool,
    made: Mutex<HashMap<String, (Instant, VapidSignature)>>,
}

impl Signer {
    fn new(subject: String, private_key: String, sign_each: bool) -> Signer {
        Signer { subject, private_key, sign_each, made: Mutex::default() }
    }

    fn signature(&self, subscription: &SubscriptionInfo) -> Result<VapidSignature, Failure> {
        let origin = origin(&subscription.endpoint);
        if self.sign_each {
            return self.sign(subscription, origin);
        }
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, signature)) = made.get(origin)
            && at.elapsed() < TOKEN_LIFETIME
        {
            return Ok(signature.clone());
        }
        let signature = self.sign(subscription, origin)?;
        made.insert(origin.to_owned(), (Instant::now(), signature.clone()));
        Ok(signature)
    }

    fn sign(&self, subscription: &SubscriptionInfo, origin: &str) -> Result<VapidSignature, Failure> {
        let mut builder = VapidSignatureBuilder::from_base64(&self.private_key, subscription)?;
        // Left to itself it forgets the port; real push services have none.
        builder.add_claim("aud", origin);
        builder.add_claim("sub", self.subject.as_str());
        Ok(builder.build()?)
    }
}

/// Scheme, host and port: everything before the third slash.
fn origin(endpoint: &str) -> &str {
    endpoint.match_indices('/').nth(2).map_or(endpoint, |(end, _)| &endpoint[..end])
}
