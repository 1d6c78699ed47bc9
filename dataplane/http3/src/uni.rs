//! Unidirectional streams of the peer: its control stream, its two QPACK streams, and others.

use bytes::{Buf, Bytes};

use crate::budget::Budget;
use crate::error::{Code, ConnectionError};
use crate::frame::{FrameHead, HeadReader, kind};
use crate::settings::{CONTROL_STREAM, Settings};
use crate::varint;

const PUSH_STREAM: u64 = 0x01;
const ENCODER_STREAM: u64 = 0x02;
const DECODER_STREAM: u64 = 0x03;

/// Bytes of an integer on the decoder stream, at most.
const INTEGER_BYTES_MAX: u8 = 10;

/// Which end we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Server,
    Client,
}

/// What the owner of the connection has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UniEvent {
    Stop { stream: u64, code: Code },
    GoAway { id: u64 },
}

#[derive(Debug)]
enum Uni {
    /// The type is not whole yet.
    Type(HeadReader),
    Control(Control),
    Encoder,
    /// Bytes of an integer that has begun, or 0.
    Decoder(u8),
    /// Of a type that is not known, and was stopped.
    Other,
}

/// The control stream of the peer.
#[derive(Debug)]
struct Control {
    settings_came: bool,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    Head(HeadReader),
    Kept { kind: u64, left: usize, payload: Vec<u8> },
    Skipped { left: u64 },
}

/// All unidirectional streams of the peer.
#[derive(Debug)]
pub(crate) struct UniStreams {
    role: Role,
    streams: Vec<(u64, Uni)>,
    /// How many more may be opened.
    left: u64,
    control_frame_bytes_max: usize,
    has_control: bool,
    has_encoder: bool,
    has_decoder: bool,
    settings: Option<Settings>,
    goaway: Option<u64>,
    max_push: Option<u64>,
}

const fn fail<T>(code: Code, reason: &'static str) -> Result<T, ConnectionError> {
    Err(ConnectionError::new(code, reason))
}

impl UniStreams {
    pub(crate) const fn new(role: Role, streams_max: u64, control_frame_bytes_max: usize) -> Self {
        Self {
            role,
            streams: Vec::new(),
            left: streams_max,
            control_frame_bytes_max,
            has_control: false,
            has_encoder: false,
            has_decoder: false,
            settings: None,
            goaway: None,
            max_push: None,
        }
    }

    /// The peer's settings, once they are there.
    pub(crate) const fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    pub(crate) fn on_data(
        &mut self,
        stream: u64,
        mut data: Bytes,
        fin: bool,
        budget: &mut Budget,
        mut emit: impl FnMut(UniEvent),
    ) -> Result<(), ConnectionError> {
        let at = match self.streams.iter().position(|(id, _)| *id == stream) {
            Some(at) => at,
            None => {
                self.left = self.left.checked_sub(1).ok_or(ConnectionError::new(
                    Code::H3_EXCESSIVE_LOAD,
                    "too many unidirectional streams",
                ))?;
                self.streams.push((stream, Uni::Type(HeadReader::default())));
                self.streams.len() - 1
            }
        };
        let mut uni = std::mem::replace(&mut self.streams[at].1, Uni::Other);
        if let Uni::Type(reader) = &mut uni
            && let Some(kind) = reader.read_varint(&mut data)
        {
            uni = self.opened(stream, kind, &mut emit)?;
        }
        match &mut uni {
            Uni::Type(_) => {}
            Uni::Control(control) => self.control(control, data, budget, &mut emit)?,
            Uni::Encoder => {
                budget.bytes(data.len())?;
                // The only instruction that capacity 0 allows is to set it to 0.
                if data.iter().any(|byte| *byte != 0x20) {
                    return fail(
                        Code::QPACK_ENCODER_STREAM_ERROR,
                        "an instruction for a dynamic table whose capacity is 0",
                    );
                }
            }
            Uni::Decoder(integer) => {
                budget.bytes(data.len())?;
                data.iter().try_for_each(|byte| decoder_instruction(integer, *byte))?;
            }
            Uni::Other => budget.bytes(data.len())?,
        }
        if fin {
            return self.ended(at, &uni);
        }
        self.streams[at].1 = uni;
        Ok(())
    }

    pub(crate) fn on_reset(&mut self, stream: u64) -> Result<(), ConnectionError> {
        let Some(at) = self.streams.iter().position(|(id, _)| *id == stream) else {
            return Ok(());
        };
        let uni = std::mem::replace(&mut self.streams[at].1, Uni::Other);
        self.ended(at, &uni)
    }

    fn ended(&mut self, at: usize, uni: &Uni) -> Result<(), ConnectionError> {
        self.streams.swap_remove(at);
        match uni {
            Uni::Type(_) | Uni::Other => Ok(()),
            Uni::Control(_) => {
                fail(Code::H3_CLOSED_CRITICAL_STREAM, "the control stream was closed")
            }
            Uni::Encoder | Uni::Decoder(_) => {
                fail(Code::H3_CLOSED_CRITICAL_STREAM, "a QPACK stream was closed")
            }
        }
    }

    fn opened(
        &mut self,
        stream: u64,
        kind: u64,
        emit: &mut impl FnMut(UniEvent),
    ) -> Result<Uni, ConnectionError> {
        let (flag, uni) = match kind {
            CONTROL_STREAM => {
                let reading = Reading::Head(HeadReader::default());
                (&mut self.has_control, Uni::Control(Control { settings_came: false, reading }))
            }
            ENCODER_STREAM => (&mut self.has_encoder, Uni::Encoder),
            DECODER_STREAM => (&mut self.has_decoder, Uni::Decoder(0)),
            PUSH_STREAM => {
                return match self.role {
                    Role::Server => {
                        fail(Code::H3_STREAM_CREATION_ERROR, "a push stream of a client")
                    }
                    Role::Client => fail(Code::H3_ID_ERROR, "a push that was not allowed"),
                };
            }
            _ => {
                emit(UniEvent::Stop { stream, code: Code::H3_STREAM_CREATION_ERROR });
                return Ok(Uni::Other);
            }
        };
        if std::mem::replace(flag, true) {
            return fail(Code::H3_STREAM_CREATION_ERROR, "a second control or QPACK stream");
        }
        Ok(uni)
    }

    fn control(
        &mut self,
        control: &mut Control,
        mut data: Bytes,
        budget: &mut Budget,
        emit: &mut impl FnMut(UniEvent),
    ) -> Result<(), ConnectionError> {
        while !data.is_empty() {
            match &mut control.reading {
                Reading::Head(reader) => {
                    let Some(head) = reader.read(&mut data) else { return Ok(()) };
                    control.reading = self.control_frame(control.settings_came, head, budget)?;
                }
                Reading::Kept { left, payload, .. } => {
                    let len = data.len().min(*left);
                    payload.extend_from_slice(&data[..len]);
                    data.advance(len);
                    *left -= len;
                }
                Reading::Skipped { left } => {
                    let len = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    budget.bytes(len)?;
                    data.advance(len);
                    *left -= len as u64;
                }
            }
            match &control.reading {
                Reading::Kept { kind, left: 0, payload } => {
                    if *kind == kind::SETTINGS {
                        self.settings = Some(Settings::parse(payload)?);
                        control.settings_came = true;
                    } else {
                        self.id_frame(*kind, payload, emit)?;
                    }
                }
                Reading::Skipped { left: 0 } => {}
                _ => continue,
            }
            control.reading = Reading::Head(HeadReader::default());
        }
        Ok(())
    }

    /// How the payload of a frame is read.
    fn control_frame(
        &self,
        settings_came: bool,
        head: FrameHead,
        budget: &mut Budget,
    ) -> Result<Reading, ConnectionError> {
        if !settings_came && head.kind != kind::SETTINGS {
            return fail(
                Code::H3_MISSING_SETTINGS,
                "the control stream does not begin with SETTINGS",
            );
        }
        let is_kept = match head.kind {
            kind::SETTINGS if settings_came => {
                return fail(Code::H3_FRAME_UNEXPECTED, "SETTINGS came twice");
            }
            kind::SETTINGS => true,
            kind::DATA | kind::HEADERS | kind::PUSH_PROMISE => {
                return fail(
                    Code::H3_FRAME_UNEXPECTED,
                    "a frame of requests on the control stream",
                );
            }
            kind::MAX_PUSH_ID if self.role == Role::Client => {
                return fail(Code::H3_FRAME_UNEXPECTED, "MAX_PUSH_ID of a server");
            }
            kind if kind::is_reserved(kind) => {
                return fail(Code::H3_FRAME_UNEXPECTED, "a frame type of HTTP/2");
            }
            kind::CANCEL_PUSH | kind::GOAWAY | kind::MAX_PUSH_ID => {
                budget.frame()?;
                if head.len == 0 || head.len > 8 {
                    return fail(Code::H3_FRAME_ERROR, "a frame with an ID has another length");
                }
                true
            }
            _ => {
                budget.frame()?;
                false
            }
        };
        if !is_kept {
            return Ok(Reading::Skipped { left: head.len });
        }
        match usize::try_from(head.len) {
            Ok(left) if left <= self.control_frame_bytes_max => {
                Ok(Reading::Kept { kind: head.kind, left, payload: Vec::new() })
            }
            _ => fail(Code::H3_EXCESSIVE_LOAD, "SETTINGS is too large"),
        }
    }

    /// A frame whose payload is an ID.
    fn id_frame(
        &mut self,
        kind: u64,
        payload: &[u8],
        emit: &mut impl FnMut(UniEvent),
    ) -> Result<(), ConnectionError> {
        let id = match varint::get(payload) {
            Some((id, len)) if len == payload.len() => id,
            _ => return fail(Code::H3_FRAME_ERROR, "a frame with an ID has another length"),
        };
        match kind {
            kind::GOAWAY => {
                if self.goaway.is_some_and(|before| id > before) {
                    return fail(Code::H3_ID_ERROR, "the ID of GOAWAY has grown");
                }
                if self.role == Role::Client && !id.is_multiple_of(4) {
                    return fail(Code::H3_ID_ERROR, "the ID of GOAWAY is not that of a request");
                }
                self.goaway = Some(id);
                emit(UniEvent::GoAway { id });
                Ok(())
            }
            kind::MAX_PUSH_ID => {
                if self.max_push.is_some_and(|before| id < before) {
                    return fail(Code::H3_ID_ERROR, "the ID of MAX_PUSH_ID has shrunk");
                }
                self.max_push = Some(id);
                Ok(())
            }
            // Nothing was ever pushed or allowed to be.
            _ => fail(Code::H3_ID_ERROR, "CANCEL_PUSH of a push that there is not"),
        }
    }
}

/// One byte of the decoder stream (RFC 9204 section 4.4). Without a dynamic table, only cancellations can come.
fn decoder_instruction(integer: &mut u8, byte: u8) -> Result<(), ConnectionError> {
    if *integer > 0 {
        *integer += 1;
        if *integer > INTEGER_BYTES_MAX {
            return fail(Code::QPACK_DECODER_STREAM_ERROR, "an integer is too large");
        }
        if byte & 0x80 == 0 {
            *integer = 0;
        }
        return Ok(());
    }
    match byte >> 6 {
        0b01 => {
            *integer = u8::from(byte & 0x3f == 0x3f);
            Ok(())
        }
        _ => fail(
            Code::QPACK_DECODER_STREAM_ERROR,
            "an acknowledgement of entries that were never made",
        ),
    }
}
