//! An HTTP CONNECT proxy that leads every name to the mock, so that real endpoints can be used.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longest head of a CONNECT.
const HEAD_MAX: usize = 8 * 1024;

/// Tunnels every CONNECT to `port` of loopback; notes `host:port` of each in `asked`.
pub(super) async fn run(listener: TcpListener, port: u16, asked: Arc<Mutex<Vec<String>>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let asked = asked.clone();
        tokio::spawn(async move {
            // A tunnel's end is no error.
            let _ = tunnel(stream, port, &asked).await;
        });
    }
}

async fn tunnel(mut client: TcpStream, port: u16, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_MAX {
            return client.write_all(b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n").await;
        }
        // Byte by byte: what follows the head is the tunnel's.
        head.push(client.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&head);
    let mut words = line.split_ascii_whitespace();
    let (Some("CONNECT"), Some(target)) = (words.next(), words.next()) else {
        return client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n").await;
    };
    asked.lock().expect("no holder panics").push(target.to_owned());
    match TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
        Ok(mut service) => {
            service.set_nodelay(true)?;
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
            tokio::io::copy_bidirectional(&mut client, &mut service).await?;
            Ok(())
        }
        Err(_) => client.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await,
    }
}
