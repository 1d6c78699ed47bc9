//! Real executors, real threads: nothing sent to a shard is lost, and a shard ends cleanly.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use outrider_shard::channel::{TrySendError, bounded, oneshot};
use outrider_shard::ready::Watched;
use outrider_shard::testing::{detached_handle, on_shard};
use outrider_shard::{ShardConfig, ShardError, Source, start, task, time};

/// Sends all of `numbers`, waiting by sleeping or by yielding while the channel is full.
fn send_all(sender: &outrider_shard::channel::Sender<u64>, numbers: impl Iterator<Item = u64>) {
    for number in numbers {
        let mut message = number;
        loop {
            match sender.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => {
                    message = back;
                    thread::yield_now();
                }
                Err(TrySendError::Closed(_)) => panic!("the receiver is still there"),
            }
        }
    }
}

#[test]
fn two_hundred_thousand_messages_from_two_threads_all_arrive_in_each_senders_order() {
    const EACH: u64 = 100_000;
    on_shard(|context| async move {
        let (sender, mut receiver) = bounded::<u64>(64, &context.handle());
        let threads: Vec<_> = (0..2u64)
            .map(|which| {
                let sender = sender.clone();
                thread::spawn(move || {
                    send_all(&sender, (0..EACH).map(|number| which << 32 | number));
                })
            })
            .collect();
        drop(sender);
        let mut next = [0u64; 2];
        while let Some(message) = receiver.recv().await {
            let which = (message >> 32) as usize;
            assert_eq!(message & 0xffff_ffff, next[which]);
            next[which] += 1;
        }
        assert_eq!(next, [EACH; 2]);
        for thread in threads {
            thread.join().unwrap();
        }
    })
    .unwrap();
}

#[test]
fn a_wake_is_not_lost_when_the_shard_falls_asleep_at_that_moment() {
    // Ping-pong: each message finds the shard about to sleep, asleep, or just awake.
    const ROUNDS: u64 = 20_000;
    let there = Arc::new(AtomicUsize::new(0));
    let seen = there.clone();
    let (handle_out, handle_in) = std::sync::mpsc::channel();
    let shard =
        start(ShardConfig { spin: Duration::ZERO, ..ShardConfig::new(1) }, move |context| {
            let (sender, mut receiver) = bounded::<u64>(4, &context.handle());
            handle_out.send(sender).unwrap();
            async move {
                while let Some(message) = receiver.recv().await {
                    seen.store(message as usize, Ordering::Release);
                }
            }
        })
        .unwrap();
    let sender = handle_in.recv().unwrap();
    for round in 1..=ROUNDS {
        sender.try_send(round).unwrap();
        while there.load(Ordering::Acquire) != round as usize {
            thread::yield_now();
        }
    }
    drop(sender);
    let handle = shard.handle();
    shard.join().unwrap();
    assert!(handle.stats().parks() > 0);
}

#[test]
fn a_task_is_woken_from_any_thread_by_its_own_waker() {
    // A future that knows nothing of shards: one thread completes it, with a std Waker alone.
    const TASKS: usize = 3_000;
    let count = on_shard(|_| async {
        let done = Rc::new(Cell::new(0));
        let wakers = Arc::new(std::sync::Mutex::new(Vec::new()));
        let flags: Arc<Vec<AtomicBool>> =
            Arc::new((0..TASKS).map(|_| AtomicBool::new(false)).collect());
        for index in 0..TASKS {
            let (done, wakers, flags) = (done.clone(), wakers.clone(), flags.clone());
            task::spawn(async move {
                std::future::poll_fn(|cx| {
                    if flags[index].load(Ordering::Acquire) {
                        return Poll::Ready(());
                    }
                    wakers.lock().unwrap().push((index, cx.waker().clone()));
                    Poll::Pending
                })
                .await;
                done.set(done.get() + 1);
            });
        }
        while wakers.lock().unwrap().len() < TASKS {
            task::yield_now().await;
        }
        let thread = thread::spawn(move || {
            // More than the queue of wakers holds, at once.
            for (index, waker) in wakers.lock().unwrap().drain(..) {
                flags[index].store(true, Ordering::Release);
                waker.wake();
            }
        });
        while done.get() < TASKS {
            time::sleep(Duration::from_millis(1)).await;
        }
        thread.join().unwrap();
        done.get()
    })
    .unwrap();
    assert_eq!(count, TASKS);
}

#[test]
fn sleeps_end_in_the_order_of_their_deadlines_and_not_early() {
    on_shard(|_| async {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = Instant::now();
        for millis in [30, 10, 20, 5, 25] {
            let order = order.clone();
            task::spawn(async move {
                time::sleep(Duration::from_millis(millis)).await;
                assert!(start.elapsed() >= Duration::from_millis(millis));
                order.borrow_mut().push(millis);
            });
        }
        let mut moved = time::sleep(Duration::from_secs(3600));
        assert!(poll_once(&mut moved).is_pending());
        moved.reset(start + Duration::from_millis(40));
        moved.await;
        assert!(start.elapsed() >= Duration::from_millis(40));
        assert_eq!(*order.borrow(), [5, 10, 20, 25, 30]);
    })
    .unwrap();
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    std::pin::Pin::new(future).poll(&mut cx)
}

#[test]
fn a_sleep_may_cross_threads_before_and_after_it_was_polled() {
    on_shard(|_| async {
        let mut sleep = time::sleep(Duration::from_millis(5));
        assert!(poll_once(&mut sleep).is_pending());
        let mut sleep = thread::spawn(move || {
            sleep.reset(Instant::now() + Duration::from_millis(5));
            sleep
        })
        .join()
        .unwrap();
        assert!(poll_once(&mut sleep).is_pending());
        thread::spawn(move || drop(sleep)).join().unwrap();
        time::sleep(Duration::from_millis(20)).await;
    })
    .unwrap();
}

#[test]
fn a_timeout_ends_what_takes_too_long_and_lets_through_what_does_not() {
    on_shard(|_| async {
        let fast = time::timeout(Duration::from_secs(60), async { 7 }).await;
        assert_eq!(fast, Ok(7));
        let slow = time::timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
        assert_eq!(slow, Err(time::Elapsed));
    })
    .unwrap();
}

#[test]
fn a_oneshot_gives_its_value_or_none_when_its_completer_is_dropped() {
    on_shard(|context| async move {
        let (completer, completion) = oneshot::<u32>(&context.handle());
        let thread = thread::spawn(move || completer.complete(5));
        assert_eq!(completion.await, Some(5));
        thread.join().unwrap();

        let (completer, completion) = oneshot::<u32>(&context.handle());
        let thread = thread::spawn(move || {
            thread::sleep(Duration::from_millis(2));
            drop(completer);
        });
        assert_eq!(completion.await, None);
        thread.join().unwrap();

        let (completer, completion) = oneshot::<u32>(&context.handle());
        assert!(!completer.is_closed());
        drop(completion);
        assert!(completer.is_closed());
        completer.complete(1);
    })
    .unwrap();
}

#[test]
fn a_channel_tells_when_it_is_full_and_when_either_end_is_gone() {
    let handle = detached_handle();
    let (sender, mut receiver) = bounded::<Rc32>(2, &handle);
    let alive = Arc::new(());
    assert!(sender.try_send(Rc32(alive.clone())).is_ok());
    assert!(sender.try_send(Rc32(alive.clone())).is_ok());
    assert!(matches!(sender.try_send(Rc32(alive.clone())), Err(TrySendError::Full(_))));
    assert!(receiver.try_recv().is_some());
    drop(receiver);
    assert_eq!(Arc::strong_count(&alive), 1, "what was not received is dropped");
    assert!(matches!(sender.try_send(Rc32(alive.clone())), Err(TrySendError::Closed(_))));

    let (sender, mut receiver) = bounded::<u8>(1, &handle);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(receiver.poll_recv(&mut cx).is_pending());
    sender.try_send(9).unwrap();
    drop(sender);
    assert_eq!(receiver.poll_recv(&mut cx), Poll::Ready(Some(9)));
    assert_eq!(receiver.poll_recv(&mut cx), Poll::Ready(None));
}

struct Rc32(#[allow(dead_code)] Arc<()>);

#[test]
fn the_shard_ends_when_main_returns_and_drops_every_other_task() {
    struct Bell(Arc<AtomicUsize>);
    impl Drop for Bell {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
            // Dropping may want to make another task: it is dropped too.
            let count = self.0.clone();
            task::spawn(async move {
                count.fetch_add(1000, Ordering::Relaxed);
            });
        }
    }
    let dropped = Arc::new(AtomicUsize::new(0));
    let count = dropped.clone();
    let shard = start(ShardConfig::new(2), move |_| async move {
        for index in 0..10 {
            let bell = Bell(count.clone());
            task::spawn(async move {
                let _bell = bell;
                if index % 2 == 0 {
                    time::sleep(Duration::from_secs(3600)).await;
                }
                std::future::pending::<()>().await;
            });
        }
        task::yield_now().await;
    })
    .unwrap();
    let handle = shard.handle();
    shard.join().unwrap();
    assert_eq!(dropped.load(Ordering::Relaxed), 10);
    // A handle outlives its shard, and does nothing.
    handle.ring();
    handle.wake(std::task::Waker::noop().clone());
}

#[test]
fn a_panic_of_a_task_is_reported_by_join() {
    let shard = start(ShardConfig::new(3), |_| async { panic!("on purpose") }).unwrap();
    let error = shard.join().unwrap_err();
    assert!(matches!(error, ShardError::Panicked { id: 3, .. }), "{error}");
    assert!(error.to_string().contains("on purpose"), "{error}");
}

#[test]
fn a_cpu_that_is_not_there_is_an_error_and_not_a_panic() {
    let config = ShardConfig { cpu: Some(1 << 20), ..ShardConfig::new(4) };
    let error = start(config, |_| async {}).unwrap_err();
    assert!(matches!(error, ShardError::Executor { id: 4, .. }), "{error}");
}

#[test]
fn a_descriptor_wakes_its_reader_once_it_has_something() {
    on_shard(|_| async {
        let (mut there, here) = UnixStream::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let here = Watched::new(here).unwrap();
        let mut total = 0;
        let thread = thread::spawn(move || {
            for _ in 0..1_000 {
                there.write_all(&[1; 100]).unwrap();
                thread::yield_now();
            }
        });
        let mut buffer = [0; 256];
        loop {
            std::future::poll_fn(|cx| here.poll_readable(cx)).await;
            match std::io::Read::read(&mut here.get_ref(), &mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    total += count;
                    if count < buffer.len() {
                        here.clear_readable();
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    here.clear_readable();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(total, 100_000);
        thread.join().unwrap();
    })
    .unwrap();
}

#[test]
fn a_source_gets_its_turn_when_the_doorbell_rings() {
    struct Inbox(Arc<AtomicUsize>, Rc<Cell<usize>>);
    impl Source for Inbox {
        fn turn(&mut self) -> bool {
            let count = self.0.swap(0, Ordering::AcqRel);
            self.1.set(self.1.get() + count);
            count > 0
        }
        fn in_flight(&self) -> bool {
            false
        }
    }
    const EACH: usize = 50_000;
    on_shard(|context| async move {
        let inbox = Arc::new(AtomicUsize::new(0));
        let taken = Rc::new(Cell::new(0));
        context.add_source(Box::new(Inbox(inbox.clone(), taken.clone())));
        let handle = context.handle();
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (handle, inbox) = (handle.clone(), inbox.clone());
                thread::spawn(move || {
                    for _ in 0..EACH {
                        inbox.fetch_add(1, Ordering::AcqRel);
                        handle.ring();
                    }
                })
            })
            .collect();
        while taken.get() < 2 * EACH {
            time::sleep(Duration::from_millis(1)).await;
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(taken.get(), 2 * EACH);
    })
    .unwrap();
}

#[test]
fn an_idle_shard_sleeps_for_good() {
    let (handle_out, handle_in) = std::sync::mpsc::channel();
    let shard = start(ShardConfig::new(5), move |context| {
        let (sender, mut receiver) = bounded::<()>(1, &context.handle());
        handle_out.send(sender).unwrap();
        async move {
            receiver.recv().await;
        }
    })
    .unwrap();
    let sender = handle_in.recv().unwrap();
    thread::sleep(Duration::from_millis(50));
    let handle = shard.handle();
    let before = handle.stats().turns();
    thread::sleep(Duration::from_millis(300));
    let turns = handle.stats().turns() - before;
    assert!(turns <= 2, "{turns} turns without any work");
    drop(sender);
    shard.join().unwrap();
}

#[test]
fn what_has_to_cross_threads_can() {
    fn crosses<T: Send + Sync + Unpin>() {}
    fn moves<T: Send>() {}
    crosses::<outrider_shard::ShardHandle>();
    crosses::<outrider_shard::channel::Sender<u8>>();
    crosses::<time::Sleep>();
    moves::<outrider_shard::channel::Receiver<u8>>();
    moves::<outrider_shard::channel::Completer<u8>>();
    moves::<outrider_shard::channel::Completion<u8>>();
}
