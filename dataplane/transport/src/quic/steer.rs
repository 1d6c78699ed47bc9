//! Steering datagrams to the shard that their connection ID names, in the kernel.
//!
//! A classic BPF program on the group of sockets that share a port picks the socket by the first byte
//! of the destination connection ID: byte 1 of a short header, byte 6 of a long one. An ID that a
//! client has made up spreads over the shards. Where the kernel does not take the program it picks by
//! the addresses, which is right too, but for connections that migrate: those datagrams are forwarded.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const fn op(code: u32, jump_true: u8, jump_false: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: jump_true, jf: jump_false, k }
}

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;

/// Attaches the program to the group that `socket` belongs to, with `shards` sockets that were bound
/// in the order of their shards.
///
/// # Errors
/// The kernel's.
pub(crate) fn steer(socket: &impl AsFd, shards: u32) -> io::Result<()> {
    assert!(shards > 0, "there is a shard");
    let mut program = [
        op(LOAD_BYTE, 0, 0, 0),
        op(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 2, 0x80),
        op(LOAD_BYTE, 0, 0, 6),
        op(libc::BPF_JMP | libc::BPF_JA, 0, 0, 1),
        op(LOAD_BYTE, 0, 0, 1),
        op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, 0, 0, shards),
        op(libc::BPF_RET | libc::BPF_A, 0, 0, 0),
    ];
    let filter =
        libc::sock_fprog { len: program.len() as libc::c_ushort, filter: program.as_mut_ptr() };
    // SAFETY: the descriptor is open for the call; the option's value is a `sock_fprog` that points
    // to `program`, and both live until the call has returned: the kernel copies the program.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::super::socket::QuicSocket;

    /// Sends from many ports, so that a choice by address would be seen.
    fn received_by(sockets: &[QuicSocket], datagram: &[u8]) -> Vec<usize> {
        let address = sockets[0].local_address();
        for _ in 0..16 {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(datagram, address).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
        let count = |socket: &QuicSocket| {
            let mut buffer = [0; 64];
            std::iter::from_fn(|| socket.socket().recv(&mut buffer).ok()).count()
        };
        sockets.iter().map(count).collect()
    }

    #[test]
    fn the_kernel_hands_a_datagram_to_the_shard_that_its_connection_id_names() {
        let sockets = QuicSocket::bind_shards("127.0.0.1:0".parse().unwrap(), 3, 1 << 20).unwrap();
        for shard in 0..3u8 {
            let mut wanted = vec![0; 3];
            wanted[usize::from(shard)] = 16;
            let short = [0x40, shard, 2, 3, 4, 5, 6, 7, 8, 9];
            assert_eq!(received_by(&sockets, &short), wanted, "short header");
            let long = [0xc0, 0, 0, 0, 1, 8, shard, 2, 3, 4, 5, 6, 7, 8];
            assert_eq!(received_by(&sockets, &long), wanted, "long header");
        }
        // Too short for an ID: any shard will do.
        assert_eq!(received_by(&sockets, &[0x40]).iter().sum::<usize>(), 16);
    }
}
