//! A path with little bandwidth or a long way, in front of TLS.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::fault::Slow;

/// Bytes and when they may arrive.
type Piece = (Instant, BytesMut);

/// The far end of a slow path to this socket.
pub(super) fn path(stream: TcpStream, slow: Slow) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (socket_read, socket_write) = stream.into_split();
    let (near_read, near_write) = tokio::io::split(near);
    carry(socket_read, near_write, slow);
    carry(near_read, socket_write, slow);
    far
}

fn carry<R, W>(mut read: R, mut write: W, slow: Slow)
where
    R: AsyncReadExt + Unpin + Send + 'static,
    W: AsyncWriteExt + Unpin + Send + 'static,
{
    // Bounded, so that the sender feels the slowness.
    let (sender, mut receiver) = mpsc::channel::<Piece>(64);
    tokio::spawn(async move {
        loop {
            let mut bytes = BytesMut::with_capacity(4 * 1024);
            match read.read_buf(&mut bytes).await {
                Ok(1..) => {}
                _ => return,
            }
            if slow.bandwidth > 0 {
                tokio::time::sleep(Duration::from_secs_f64(bytes.len() as f64 / slow.bandwidth as f64)).await;
            }
            if sender.send((Instant::now() + slow.latency, bytes)).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((time, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(time).await;
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    });
}
