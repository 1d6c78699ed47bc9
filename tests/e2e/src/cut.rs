//! The wires between nodes, some of which can be cut: a proxy before each node that knows by the source
//! address who calls. A cut holds bytes back and gives no sign, as a broken network does; once it is mended
//! they arrive late, as TCP would send them again. Datagrams are lost meanwhile.

use std::collections::{HashMap, HashSet};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
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
    fn is_cut(&self, wire: (IpAddr, IpAddr)) -> bool {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).contains(&wire)
    }

    /// Waits while the wire is cut; false when the test is over.
    fn pass(&self, wire: (IpAddr, IpAddr)) -> bool {
        while !self.over.load(Ordering::Relaxed) {
            if !self.is_cut(wire) {
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

    /// An address that leads to `target`, a listener of the node `to`, by TCP and by UDP.
    pub fn proxy(&self, to: IpAddr, target: SocketAddr) -> SocketAddr {
        let port = crate::ports::free();
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let socket = UdpSocket::bind(("127.0.0.1", port)).expect("the port is free");
        let wires = Arc::clone(&self.0);
        thread::spawn(move || datagrams(&wires, &socket, to, target));
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

/// Passes datagrams on, each client's from a socket of its own.
fn datagrams(wires: &Arc<Wires>, socket: &UdpSocket, to: IpAddr, target: SocketAddr) {
    let _ = socket.set_read_timeout(Some(READ_WAIT));
    let mut clients: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut buffer = vec![0; 64 << 10];
    while !wires.over.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        let there = clients.entry(client).or_insert_with(|| {
            let there = UdpSocket::bind((to, 0)).expect("the node's address is this machine's");
            there.connect(target).expect("a datagram socket connects at once");
            let wires = Arc::clone(wires);
            let handles = (there.try_clone(), socket.try_clone());
            let (Ok(from), Ok(back)) = handles else { panic!("a socket is cloned") };
            thread::spawn(move || answers(&wires, &from, to, &back, client));
            there
        });
        if !wires.is_cut((client.ip(), to)) {
            let _ = there.send(&buffer[..length]);
        }
    }
}

fn answers(wires: &Wires, from: &UdpSocket, node: IpAddr, back: &UdpSocket, client: SocketAddr) {
    let _ = from.set_read_timeout(Some(READ_WAIT));
    let mut buffer = vec![0; 64 << 10];
    while !wires.over.load(Ordering::Relaxed) {
        // A node that is away refuses: that is its loss.
        let Ok(length) = from.recv(&mut buffer) else { continue };
        if !wires.is_cut((node, client.ip())) {
            let _ = back.send_to(&buffer[..length], client);
        }
    }
}
