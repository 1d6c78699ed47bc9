//! One request, as the chunks of its stream come.

use bytes::{Buf, Bytes};

use crate::budget::Budget;
use crate::connection::{Event, Limits};
use crate::error::{Code, ConnectionError, StreamError};
use crate::frame::{FrameHead, HeadReader, kind};
use crate::head::{HeadDecoder, HeadError};

/// Room for the most of field sections; it grows with those that are longer.
const SECTION_ROOM_BYTES: usize = 1 << 10;

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Before its head.
    Head,
    /// Between its head and its end.
    Body,
    /// Behind its trailers.
    Trailers,
    /// Refused or failed: what still comes is dropped.
    Over,
}

#[derive(Debug)]
enum Reading {
    Head(HeadReader),
    Section { left: usize, partial: Vec<u8> },
    Data { left: u64 },
    Skipped { left: u64 },
}

/// What a stream needs of its connection.
pub(crate) struct Shared<'a> {
    pub(crate) stream: u64,
    pub(crate) limits: &'a Limits,
    pub(crate) decoder: &'a mut HeadDecoder,
    pub(crate) budget: &'a mut Budget,
    pub(crate) events: &'a mut std::collections::VecDeque<Event>,
}

#[derive(Debug)]
pub(crate) struct RequestStream {
    phase: Phase,
    reading: Reading,
    content_length: Option<u64>,
    /// Payloads of all DATA frames that have begun.
    body_bytes: u64,
}

impl RequestStream {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Head,
            reading: Reading::Head(HeadReader::default()),
            content_length: None,
            body_bytes: 0,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Bytes that are kept of a field section.
    pub(crate) fn partial_bytes(&self) -> usize {
        match &self.reading {
            Reading::Section { partial, .. } => partial.capacity(),
            _ => 0,
        }
    }

    fn over(&mut self) {
        self.phase = Phase::Over;
        self.reading = Reading::Head(HeadReader::default());
    }

    pub(crate) fn fail(&mut self, shared: &mut Shared<'_>, error: StreamError) {
        shared.events.push_back(Event::Failed { stream: shared.stream, error });
        self.over();
    }

    pub(crate) fn on_data(
        &mut self,
        shared: &mut Shared<'_>,
        mut data: Bytes,
    ) -> Result<(), ConnectionError> {
        while !data.is_empty() && self.phase != Phase::Over {
            match &mut self.reading {
                Reading::Head(reader) => {
                    let Some(head) = reader.read(&mut data) else { return Ok(()) };
                    self.frame(shared, head, &mut data)?;
                }
                Reading::Section { left, partial } => {
                    let len = data.len().min(*left);
                    partial.extend_from_slice(&data[..len]);
                    data.advance(len);
                    *left -= len;
                    if *left == 0 {
                        let section = std::mem::take(partial);
                        self.section(shared, &section)?;
                    }
                }
                Reading::Data { left } => {
                    let len = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= len as u64;
                    if *left == 0 {
                        self.reading = Reading::Head(HeadReader::default());
                    }
                    let data = data.split_to(len);
                    shared.events.push_back(Event::Body { stream: shared.stream, data });
                }
                Reading::Skipped { left } => {
                    let len = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    shared.budget.bytes(len)?;
                    data.advance(len);
                    *left -= len as u64;
                    if *left == 0 {
                        self.reading = Reading::Head(HeadReader::default());
                    }
                }
            }
        }
        Ok(())
    }

    /// The head of a frame is there.
    fn frame(
        &mut self,
        shared: &mut Shared<'_>,
        head: FrameHead,
        data: &mut Bytes,
    ) -> Result<(), ConnectionError> {
        let unexpected = |reason| Err(ConnectionError::new(Code::H3_FRAME_UNEXPECTED, reason));
        match head.kind {
            kind::HEADERS if self.phase == Phase::Trailers => unexpected("HEADERS behind trailers"),
            kind::HEADERS => match usize::try_from(head.len) {
                Ok(len) if head.len <= shared.limits.field_section_bytes_max => {
                    if data.len() >= len {
                        let section = data.split_to(len);
                        return self.section(shared, &section);
                    }
                    // Room for what is said to come, where that is little: much has to come first.
                    let room = len.min(SECTION_ROOM_BYTES.max(data.len()));
                    let mut partial = Vec::with_capacity(room);
                    partial.extend_from_slice(data);
                    self.reading = Reading::Section { left: len - data.len(), partial };
                    data.clear();
                    Ok(())
                }
                _ => {
                    self.refuse(shared, http::StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
                    Ok(())
                }
            },
            kind::DATA => {
                match self.phase {
                    Phase::Head => return unexpected("DATA before HEADERS"),
                    Phase::Trailers => return unexpected("DATA behind trailers"),
                    Phase::Body | Phase::Over => {}
                }
                if head.len == 0 {
                    return shared.budget.frame();
                }
                self.body_bytes = self.body_bytes.saturating_add(head.len);
                if self.content_length.is_some_and(|length| self.body_bytes > length) {
                    let reason = "the body is longer than content-length";
                    self.fail(shared, StreamError::malformed(reason));
                    return Ok(());
                }
                self.reading = Reading::Data { left: head.len };
                Ok(())
            }
            kind::CANCEL_PUSH
            | kind::SETTINGS
            | kind::PUSH_PROMISE
            | kind::GOAWAY
            | kind::MAX_PUSH_ID => unexpected("a frame that requests do not have"),
            kind if kind::is_reserved(kind) => unexpected("a frame type of HTTP/2"),
            _ => {
                shared.budget.frame()?;
                if head.len > 0 {
                    self.reading = Reading::Skipped { left: head.len };
                }
                Ok(())
            }
        }
    }

    /// A field section is whole.
    fn section(&mut self, shared: &mut Shared<'_>, section: &[u8]) -> Result<(), ConnectionError> {
        self.reading = Reading::Head(HeadReader::default());
        let result = match self.phase {
            Phase::Head => shared.decoder.request(section, shared.limits).map(Some),
            _ => shared.decoder.trailers(section, shared.limits).map(|()| None),
        };
        match result {
            Ok(Some(head)) => {
                self.phase = Phase::Body;
                self.content_length = head.content_length;
                shared.events.push_back(Event::Request {
                    stream: shared.stream,
                    head: head.parts,
                    body_follows: true,
                });
            }
            Ok(None) => self.phase = Phase::Trailers,
            Err(HeadError::Connection(error)) => return Err(error),
            Err(HeadError::Stream(error)) => self.fail(shared, error),
            Err(HeadError::Refused(status)) => self.refuse(shared, status),
        }
        Ok(())
    }

    /// Answers with a status, where the request was not told yet.
    fn refuse(&mut self, shared: &mut Shared<'_>, status: http::StatusCode) {
        if self.phase == Phase::Head {
            shared.events.push_back(Event::Refused { stream: shared.stream, status });
            self.over();
        } else {
            let error = StreamError::new(Code::H3_EXCESSIVE_LOAD, "trailers are too large");
            self.fail(shared, error);
        }
    }

    /// The client's side has ended.
    pub(crate) fn on_end(&mut self, shared: &mut Shared<'_>) -> Result<(), ConnectionError> {
        if self.phase == Phase::Over {
            return Ok(());
        }
        if !matches!(&self.reading, Reading::Head(reader) if reader.is_empty()) {
            return Err(ConnectionError::new(
                Code::H3_FRAME_ERROR,
                "a stream ends inside of a frame",
            ));
        }
        if self.phase == Phase::Head {
            let code = Code::H3_REQUEST_INCOMPLETE;
            self.fail(shared, StreamError::new(code, "the stream ends before a request"));
            return Ok(());
        }
        let told = matches!(
            shared.events.back(),
            Some(Event::Request { stream, .. }) if *stream == shared.stream
        );
        if self.content_length.is_some_and(|length| length != self.body_bytes) {
            if told {
                shared.events.pop_back();
            }
            self.fail(shared, StreamError::malformed("the body is shorter than content-length"));
            return Ok(());
        }
        match shared.events.back_mut() {
            Some(Event::Request { body_follows, .. }) if told => *body_follows = false,
            _ => shared.events.push_back(Event::BodyEnd { stream: shared.stream }),
        }
        self.phase = Phase::Over;
        Ok(())
    }
}
