//! The web-push crate with the client it brings along: isahc, which is libcurl, over HTTP/2.

use fanfare_compare::{Failure, Work};
use isahc::HttpClient;
use isahc::config::{CaCertificate, Configurable};
use web_push::{IsahcWebPushClient, WebPushClient};

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let work = Work::ordered()?;
    let client = HttpClient::builder().ssl_ca_certificate(CaCertificate::file(&work.ca)).build()?;
    let client = IsahcWebPushClient::from(client);
    work.carry_out(move |message| {
        let client = client.clone();
        async move { Ok(client.send(message).await?) }
    })
    .await
}
