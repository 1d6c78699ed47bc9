//! Archives of events, as they stand in the outbox and will cross to the control plane.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrider_artifact::event::{EVENT_VERSION, UploadEvent};

fuzz_target!(|bytes: &[u8]| {
    let _ = UploadEvent::from_archive(bytes);
    // The version and its padding, so that what follows is read as an archive.
    let mut record = vec![0; 16];
    record[..2].copy_from_slice(&EVENT_VERSION.to_le_bytes());
    record.extend_from_slice(bytes);
    if let Ok(event) = UploadEvent::from_archive(&record) {
        let again = UploadEvent::from_archive(&event.to_archive()).expect("its own archive");
        assert_eq!(again, event);
    }
});
