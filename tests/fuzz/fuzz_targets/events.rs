//! Records about events, as they cross from edges to nodes and lie in queues: read as they are, and as the archive
//! behind a header that is right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_events::event::RECORD_BYTES_MAX;
use outrider_events::{Entry, Marks, Progress, Receiver, ToEdge, ToNode};
use outrider_state::record::{Kind, framed};

fuzz_target!(|bytes: &[u8]| {
    let _ = Entry::from_record(bytes);
    if let Ok(entry) = Entry::from_record(&framed(Kind::Events, bytes)) {
        let again = entry.to_record().expect("it was one");
        assert!(again.len() <= RECORD_BYTES_MAX, "what may be read may be written");
        assert_eq!(Entry::from_record(&again).expect("its own record"), entry);
        let mut marks = Marks::default();
        assert_eq!(marks.take(&mut entry.clone()), 0);
        let mut twice = entry;
        let events = twice.batch.events.len() as u64;
        assert_eq!(marks.take(&mut twice), events);
    }
    if let Ok(message) = ToNode::from_record(&framed(Kind::EventsToNode, bytes)) {
        let mut receiver = Receiver::new(1, [0; 16], Default::default());
        let _ = receiver.receive(ToNode::Hello);
        if let Ok(Some(entry)) = receiver.receive(message) {
            entry.to_record().expect("what a receiver lets through is an entry");
            receiver.durable();
            assert!(receiver.poll().is_some() && receiver.poll().is_some());
        }
    }
    let _ = ToEdge::from_record(&framed(Kind::EventsToEdge, bytes));
    if let Ok(progress) = Progress::from_record(&framed(Kind::Progress, bytes)) {
        let _ = progress.to_record().expect("it was one");
    }
});
