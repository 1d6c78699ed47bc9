//! The disk as one io_uring: plain or registered buffers, registered files, O_DIRECT where the file
//! system has it.
//!
//! Owns the ring, the files and every slot that is in flight. It never lets a slot go before the
//! kernel is done with it: dropping the ring waits.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, types};

use super::{Completion, Disk, IN_FLIGHT_MAX, Operation, Request};
use crate::arena::Arena;

/// The kernel takes at most this much in one registered buffer.
const REGISTERED_BYTES_MAX: usize = 1 << 30;

/// The real disk.
pub(crate) struct Ring {
    ring: IoUring,
    _files: Vec<File>,
    /// Start and length of the arena, and the length of each registered part (0: not registered).
    base: usize,
    part_bytes: usize,
    requests: Vec<Option<Request>>,
    free: Vec<u32>,
    queued: usize,
    /// The memory that the kernel reads and writes; dropped after the ring.
    _arena: Arena,
}

impl Ring {
    /// Makes the ring over the files of the stripes. `big_bytes`: no slot straddles a multiple of it.
    pub(crate) fn new(
        files: Vec<File>,
        arena: &Arena,
        big_bytes: usize,
        register: bool,
        doorbell: Option<BorrowedFd<'_>>,
    ) -> io::Result<Self> {
        let ring = build_ring()?;
        let descriptors: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&descriptors)?;
        if let Some(doorbell) = doorbell {
            ring.submitter().register_eventfd(doorbell.as_raw_fd())?;
        }
        let (base, bytes) = arena.extent();
        let part_bytes = if register {
            register_arena(&ring, base, bytes, big_bytes).unwrap_or_else(|error| {
                tracing::warn!(
                    %error,
                    arena_bytes = bytes,
                    "the cache's memory cannot be registered with the kernel: reading without it, \
                     at somewhat more CPU. Raise RLIMIT_MEMLOCK (LimitMEMLOCK= in systemd)"
                );
                0
            })
        } else {
            0
        };
        Ok(Self {
            ring,
            _files: files,
            base: base as usize,
            part_bytes,
            requests: (0..IN_FLIGHT_MAX).map(|_| None).collect(),
            free: (0..IN_FLIGHT_MAX as u32).rev().collect(),
            queued: 0,
            _arena: arena.clone(),
        })
    }

    /// Whether the arena is registered.
    pub(crate) fn registered(&self) -> bool {
        self.part_bytes > 0
    }

    fn entry(&self, request: &Request) -> io_uring::squeue::Entry {
        let file = types::Fixed(u32::from(request.stripe));
        match &request.operation {
            Operation::Read { slot, offset, len } => {
                let pointer = slot.pointer();
                match self.part_of(pointer as usize) {
                    Some(part) => {
                        opcode::ReadFixed::new(file, pointer, *len, part).offset(*offset).build()
                    }
                    None => opcode::Read::new(file, pointer, *len).offset(*offset).build(),
                }
            }
            Operation::Write { frozen, offset } => {
                let (pointer, len) = (frozen.pointer(), frozen.record_len() as u32);
                match self.part_of(pointer as usize) {
                    Some(part) => {
                        opcode::WriteFixed::new(file, pointer, len, part).offset(*offset).build()
                    }
                    None => opcode::Write::new(file, pointer, len).offset(*offset).build(),
                }
            }
            Operation::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        }
    }

    fn part_of(&self, pointer: usize) -> Option<u16> {
        (self.part_bytes > 0).then(|| ((pointer - self.base) / self.part_bytes) as u16)
    }

    fn enter(&mut self, wait: usize) {
        match self.ring.submit_and_wait(wait) {
            Ok(taken) => self.queued -= taken.min(self.queued),
            // Interrupted, or the completion queue must be reaped first: the next turn goes on.
            Err(error) => match error.raw_os_error() {
                Some(code) if code == rustix::io::Errno::INTR.raw_os_error() => {}
                Some(code) if code == rustix::io::Errno::BUSY.raw_os_error() => {}
                Some(code) if code == rustix::io::Errno::AGAIN.raw_os_error() => {}
                _ => tracing::error!(%error, "the disk ring refused to be entered"),
            },
        }
    }

    fn reap(&mut self, done: &mut VecDeque<Completion>) {
        for entry in self.ring.completion() {
            let index = entry.user_data() as usize;
            let Some(request) = self.requests[index].take() else {
                unreachable!("the kernel completes an operation once")
            };
            self.free.push(index as u32);
            let expected = match &request.operation {
                Operation::Read { len, .. } => *len as i32,
                Operation::Write { frozen, .. } => frozen.record_len() as i32,
                Operation::Sync => 0,
            };
            let result = match entry.result() {
                code if code < 0 => Err(io::Error::from_raw_os_error(-code)),
                moved if moved == expected => Ok(()),
                moved => Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    format!("{moved} of {expected} bytes"),
                )),
            };
            done.push_back(Completion { request, result });
        }
    }
}

/// Without task-run interrupts where the kernel knows how (6.1), else plain.
fn build_ring() -> io::Result<IoUring> {
    let entries = IN_FLIGHT_MAX as u32;
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries)
        .or_else(|_| IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().build(entries))
        .or_else(|_| IoUring::new(entries))
}

fn part_bytes_for(big_bytes: usize) -> usize {
    REGISTERED_BYTES_MAX / big_bytes * big_bytes
}

#[allow(unsafe_code)]
fn register_arena(
    ring: &IoUring,
    base: *mut u8,
    bytes: usize,
    big_bytes: usize,
) -> io::Result<usize> {
    let part_bytes = part_bytes_for(big_bytes);
    let parts: Vec<_> = (0..bytes)
        .step_by(part_bytes)
        .map(|start| libc_iovec(base.wrapping_add(start), part_bytes.min(bytes - start)))
        .collect();
    // SAFETY: the parts lie in the arena's mapping, which the ring keeps alive; the kernel touches
    // them only for operations that own a slot there.
    unsafe { ring.submitter().register_buffers(&parts) }?;
    Ok(part_bytes)
}

fn libc_iovec(base: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: base.cast(), iov_len: len }
}

#[allow(unsafe_code)]
impl Disk for Ring {
    fn submit(&mut self, request: Request) {
        let index = self.free.pop().expect("the caller keeps at most IN_FLIGHT_MAX in flight");
        let entry = self.entry(&request).user_data(u64::from(index));
        self.requests[index as usize] = Some(request);
        // SAFETY: the slot behind the pointers is owned by the request, which stays in `requests`
        // until the kernel has completed it (`drop` waits); the files are registered and stay open.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has as many entries as there may be operations in flight");
        self.queued += 1;
    }

    fn turn(&mut self, done: &mut VecDeque<Completion>) {
        if self.in_flight() == 0 {
            return;
        }
        if self.queued > 0 || self.ring.submission().taskrun() {
            self.enter(0);
        }
        self.reap(done);
    }

    fn wait(&mut self) {
        if self.in_flight() > 0 {
            self.enter(1);
        }
    }

    fn in_flight(&self) -> usize {
        IN_FLIGHT_MAX - self.free.len()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut done = VecDeque::new();
        while self.in_flight() > 0 {
            self.enter(1);
            self.reap(&mut done);
            done.clear();
        }
        // The kernel tears a ring down later; the files (and their locks) are let go of now.
        let _ = self.ring.submitter().unregister_files();
    }
}
