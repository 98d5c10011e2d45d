//! A sender as one would tune it by hand: the web-push crate encrypts, reqwest posts over one HTTP/2 connection.

use fanfare_compare::{Failure, Work};
use reqwest::{Certificate, Client};
use web_push::WebPushMessage;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let work = Work::ordered()?;
    let client = Client::builder()
        .tls_certs_only([Certificate::from_pem(&std::fs::read(&work.ca)?)?])
        // Otherwise the first requests, which do not know yet what will be agreed on, open a connection each.
        .http2_prior_knowledge()
        .build()?;
    work.carry_out(move |message| post(client.clone(), message)).await
}

async fn post(client: Client, message: WebPushMessage) -> Result<(), Failure> {
    let payload = message.payload.ok_or("a message without a payload")?;
    let mut request = client
        .post(message.endpoint.to_string())
        .header("ttl", message.ttl)
        .header("content-encoding", payload.content_encoding.to_str())
        .header("content-type", "application/octet-stream");
    if let Some(urgency) = message.urgency {
        request = request.header("urgency", urgency.to_string());
    }
    for (name, value) in payload.crypto_headers {
        request = request.header(name, value);
    }
    request.body(payload.content).send().await?.error_for_status()?;
    Ok(())
}
