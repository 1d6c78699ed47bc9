//! The wires between nodes, some of which can be cut: a proxy before each node that knows by the source
//! address who calls. A cut holds bytes back and gives no sign, as a broken network does; once it is mended
//! they arrive late, as TCP would send them again.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How often a cut wire is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long a read waits before it is looked whether the test is over.
const READ_WAIT: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Wires {
    /// From whom to whom nothing passes.
    cut: Mutex<HashSet<(IpAddr, IpAddr)>>,
    over: AtomicBool,
}

impl Wires {
    /// Waits while the wire is cut; false when the test is over.
    fn pass(&self, wire: (IpAddr, IpAddr)) -> bool {
        while !self.over.load(Ordering::Relaxed) {
            if !self.cut.lock().unwrap_or_else(PoisonError::into_inner).contains(&wire) {
                return true;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        false
    }
}

/// All wires of a cluster. Everything ends with this value.
#[derive(Debug, Default)]
pub struct Cuts(Arc<Wires>);

impl Cuts {
    /// None of them cut.
    pub fn new() -> Self {
        Self::default()
    }

    /// An address that leads to `target`, a listener of the node `to`.
    pub fn proxy(&self, to: IpAddr, target: SocketAddr) -> SocketAddr {
        let port = crate::ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let wires = Arc::clone(&self.0);
        thread::spawn(move || {
            while !wires.over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, from)) => {
                        let wires = Arc::clone(&wires);
                        thread::spawn(move || connection(&wires, stream, from.ip(), to, target));
                    }
                    Err(_) => thread::sleep(LOOK_INTERVAL),
                }
            }
        });
        ([127, 0, 0, 1], port).into()
    }

    /// Lets nothing pass in this direction.
    pub fn cut(&self, from: IpAddr, to: IpAddr) {
        self.0.cut.lock().unwrap_or_else(PoisonError::into_inner).insert((from, to));
    }

    /// Lets everything pass again.
    pub fn mend(&self) {
        self.0.cut.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Drop for Cuts {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

fn connection(wires: &Arc<Wires>, client: TcpStream, from: IpAddr, to: IpAddr, target: SocketAddr) {
    let _ = client.set_nonblocking(false);
    if !wires.pass((from, to)) {
        return;
    }
    let Ok(server) = TcpStream::connect(target) else { return };
    let (Ok(client_too), Ok(server_too)) = (client.try_clone(), server.try_clone()) else { return };
    let back = Arc::clone(wires);
    let answers = thread::spawn(move || copy(&back, (to, from), server_too, client_too));
    copy(wires, (from, to), client, server);
    let _ = answers.join();
}

fn copy(wires: &Wires, wire: (IpAddr, IpAddr), mut from: TcpStream, mut to: TcpStream) {
    let _ = from.set_read_timeout(Some(READ_WAIT));
    let _ = to.set_nodelay(true);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                if wires.over.load(Ordering::Relaxed) {
                    break;
                }
                continue;
            }
            Err(_) => break,
        };
        if !wires.pass(wire) || to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
