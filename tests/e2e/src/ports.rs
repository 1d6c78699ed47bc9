//! Ports that no other test gets: from below the range that the kernel hands out for outgoing
//! connections (32768 and up by default), so that no client's own port takes one between two starts
//! of the same server.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

const PORT_MIN: u32 = 12_000;
const PORT_MAX: u32 = 32_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A port of 127.0.0.1 on which nothing listens now, and which this process gives out only once.
pub fn free() -> u16 {
    // Test processes run side by side start at different places.
    let start = std::process::id().wrapping_mul(97) % (PORT_MAX - PORT_MIN);
    for _ in PORT_MIN..PORT_MAX {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORT_MIN + (start + step) % (PORT_MAX - PORT_MIN);
        let port = u16::try_from(port).expect("the range is below 65536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port on 127.0.0.1 between {PORT_MIN} and {PORT_MAX}");
}
