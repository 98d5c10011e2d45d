//! One origin: a TCP port that can fall silent and come back, and what becomes of each connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::certificates::Acceptors;
use super::fault::{Fault, GoAway, Slow};
use super::slow;
use super::state::State;
use super::{flood, http1, http2, sink};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1_024;

/// Reserves a port of loopback (0: any): until [`TcpSocket::listen`] connections to it are refused.
pub(super) fn reserve(port: u16) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    // So that the port can be had again while old connections of it linger.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    Ok(socket)
}

/// Keeps an origin's port until the channel closes: accepts while it says true; on false stops and ends all connections, but keeps
/// the port, so that no other process takes it and connections are refused.
pub(super) async fn run(
    state: Arc<State>,
    acceptors: Arc<Acceptors>,
    origin: usize,
    socket: TcpSocket,
    mut listening: watch::Receiver<bool>,
    confirm: watch::Sender<bool>,
) {
    let Ok(port) = socket.local_addr().map(|address| address.port()) else { return };
    let mut socket = Some(socket);
    loop {
        if !*listening.borrow_and_update() {
            let _ = confirm.send(false);
            if listening.changed().await.is_err() {
                return;
            }
            continue;
        }
        let reserved = match socket.take() {
            Some(socket) => Ok(socket),
            None => reserve(port),
        };
        let Ok(listener) = reserved.and_then(|socket| socket.listen(BACKLOG)) else {
            // Someone took the port in the instant between listening and reserving: try again.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        let _ = confirm.send(true);
        let (alive, end) = watch::channel(());
        let stopped = tokio::select! {
            () = accept(&state, &acceptors, origin, &listener, &end) => Ok(()),
            changed = listening.wait_for(|listening| !listening) => changed.map(|_| ()),
        };
        drop(listener);
        // Reserved again before the connections end: whoever sees one end finds the port closed.
        socket = reserve(port).ok();
        drop(end);
        drop(alive);
        if stopped.is_err() {
            return;
        }
    }
}

async fn accept(
    state: &Arc<State>,
    acceptors: &Arc<Acceptors>,
    origin: usize,
    listener: &TcpListener,
    end: &watch::Receiver<()>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Out of file descriptors, most likely.
            Err(_) => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let (state, acceptors, mut end) = (state.clone(), acceptors.clone(), end.clone());
        tokio::spawn(async move {
            let connection = Connected::new(state, origin);
            tokio::select! {
                () = connection.serve(acceptors, stream) => {}
                // The sender is never used: it only ends.
                _ = end.changed() => {}
            }
        });
    }
}

/// Counts a connection as open as long as it lives.
struct Connected {
    state: Arc<State>,
    origin: usize,
    number: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.state.disconnected(self.origin);
    }
}

impl Connected {
    fn new(state: Arc<State>, origin: usize) -> Connected {
        let number = state.connected(origin);
        Connected { state, origin, number }
    }

    async fn serve(&self, acceptors: Arc<Acceptors>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let faults = self.state.connection_faults(self.origin);
        let slow: Option<Slow> = faults.iter().find_map(|fault| if let Fault::Slow(slow) = fault { Some(*slow) } else { None });
        match slow {
            Some(slow) => self.greet(&acceptors, slow::path(stream, slow), &faults).await,
            None => self.greet(&acceptors, stream, &faults).await,
        }
    }

    async fn greet<S: AsyncRead + AsyncWrite + Unpin>(&self, acceptors: &Acceptors, stream: S, faults: &[Fault]) {
        if faults.contains(&Fault::TlsStall) {
            std::future::pending::<()>().await;
        }
        let acceptor = if faults.contains(&Fault::Untrusted) {
            &acceptors.untrusted
        } else if faults.contains(&Fault::Http1Only) {
            &acceptors.http1_only
        } else {
            &acceptors.usual
        };
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        self.state.handshaken(self.origin);
        if faults.contains(&Fault::Garbage) {
            let _ = stream.write_all(&[b'?'; 4_096]).await;
            let _ = stream.flush().await;
            // Whoever takes garbage for patience finds out by itself.
            std::future::pending::<()>().await;
        }
        let goaway: Option<GoAway> =
            faults.iter().find_map(|fault| if let Fault::GoAwayAfter(goaway) = fault { Some(*goaway) } else { None });
        let (state, origin, number) = (self.state.clone(), self.origin, self.number);
        // How a connection ends is the peer's affair or a fault on order: neither is an error here.
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let flood = faults.iter().find_map(|fault| if let Fault::Flood(flood) = fault { Some(*flood) } else { None });
        if let Some(flood) = flood {
            let _ = flood::serve(stream, http2, flood).await;
        } else if http2 && state.sink {
            let _ = sink::serve(state, origin, stream).await;
        } else if http2 {
            let _ = http2::serve(state, origin, number, stream, goaway).await;
        } else {
            let _ = http1::serve(state, origin, number, stream, goaway).await;
        }
    }
}
