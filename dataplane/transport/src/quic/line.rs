//! What a connection has, whichever protocol it speaks: QUIC's state machine, what it may hold, its end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use outrider_artifact::native::RefusalCode;
use outrider_http3::Code;
use quinn_proto::{ReadError, StreamId, VarInt};
use rustls::pki_types::CertificateDer;

use super::connection::Shared;
use super::memory::{CONNECTION_BYTES, Charge, HANDSHAKE_BYTES, Unread};
use super::rate::Rate;
use crate::activity::Activity;
use crate::drain::Connected;
use crate::metrics::Reason;
use crate::peer::{Peer, Protocol};
use crate::pins::ConnectionPins;
use crate::server::Handler;

/// A connection without its protocol.
pub(crate) struct Line<H: Handler> {
    pub(crate) quic: quinn_proto::Connection,
    pub(crate) shared: Rc<Shared<H>>,
    /// Its index in the endpoint's table, and which connection with that index it is.
    pub(crate) place: (usize, u64),
    pub(crate) activity: Rc<Activity>,
    pub(crate) pins: ConnectionPins,
    pub(crate) address: SocketAddr,
    /// What it speaks, once the client has said so.
    pub(crate) protocol: Option<Protocol>,
    pub(crate) handshaking: bool,
    /// It is closed, by either side: what is left is to tell the client so.
    pub(crate) closed: bool,
    resets: Rate,
    /// What it holds, as it is counted.
    pub(crate) charge: Charge,
    pub(crate) unread: Unread,
    /// The member of the fleet that the client is.
    member: Option<u64>,
    connected: Option<Connected>,
}

/// Why this side ends a connection. Each protocol has its own numbers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// There is nothing more to do.
    Done,
    /// The server goes away.
    Leaving,
    /// The client wants too much, or too little.
    Overload,
}

/// What there was to read of a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// More is to come.
    Open,
    Finished,
    Reset(VarInt),
}

impl<H: Handler> Line<H> {
    pub(crate) fn new(
        quic: quinn_proto::Connection,
        shared: Rc<Shared<H>>,
        place: (usize, u64),
        now: Instant,
        connected: Connected,
    ) -> Self {
        let activity = Activity::new(Protocol::Http3);
        // The handshake has a clock of its own.
        activity.head_started.set(false);
        shared.handshaking.set(shared.handshaking.get() + 1);
        shared.open.inc();
        let charge = Charge::new(&shared.memory, CONNECTION_BYTES + HANDSHAKE_BYTES);
        Self {
            address: quic.remote_address(),
            pins: shared.pins.connection(),
            quic,
            shared,
            place,
            activity,
            protocol: None,
            handshaking: true,
            closed: false,
            resets: Rate::new(now),
            charge,
            unread: Unread::default(),
            member: None,
            connected: Some(connected),
        }
    }

    /// Who asks, by a protocol.
    pub(crate) fn peer(&self, protocol: Protocol) -> Peer {
        Peer {
            address: SocketAddr::new(self.address.ip().to_canonical(), self.address.port()),
            secure: true,
            protocol,
            early: self.quic.is_handshaking(),
            member: self.member,
        }
    }

    /// The handshake is over, and the client's certificate, if it has one, is verified.
    pub(crate) fn learn_member(&mut self) {
        let Some(member_of) = self.shared.member_of else { return };
        let chain = self.quic.crypto_session().peer_identity();
        let chain = chain.and_then(|chain| chain.downcast::<Vec<CertificateDer<'static>>>().ok());
        let Some(own) = chain.as_ref().and_then(|chain| chain.first()) else { return };
        self.member = crate::tls::names_in(own).iter().find_map(|name| member_of(name));
    }

    /// Reads what a stream has, up to `room` bytes, into `chunks`. `None` for a stream that is over.
    pub(crate) fn read(
        &mut self,
        id: StreamId,
        room: usize,
        chunks: &mut Vec<Bytes>,
    ) -> Option<End> {
        chunks.clear();
        let mut receiving = self.quic.recv_stream(id);
        let mut reading = receiving.read(true).ok()?;
        let mut left = room;
        let mut frames = 0;
        let end = loop {
            if left == 0 {
                break End::Open;
            }
            match reading.next(left) {
                Ok(Some(chunk)) => {
                    // Where there is no room for all of a frame, its rest is read later.
                    frames += usize::from(chunk.bytes.len() < left);
                    left -= chunk.bytes.len();
                    chunks.push(chunk.bytes);
                }
                Ok(None) => break End::Finished,
                Err(ReadError::Blocked) => break End::Open,
                Err(ReadError::Reset(code)) => break End::Reset(code),
            }
        };
        // Whether a window is to be told is seen when the connection is asked what to send.
        let _ = reading.finalize();
        // The end of a stream often comes in a frame of its own.
        frames += usize::from(frames == 0 && matches!(end, End::Finished));
        self.unread.note_read(frames, room - left);
        Some(end)
    }

    /// Counts a request that the client gave up; too many of them end the connection.
    pub(crate) fn note_given_up(&mut self, now: Instant) {
        self.shared.metrics.quic.requests_reset.inc();
        if self.resets.note(now, self.shared.settings.resets_per_second_max) {
            self.close(now, Ending::Overload, "too many resets", Reason::Resets);
        }
    }

    /// Ends the connection of a client that breaks the protocol.
    pub(crate) fn fail(&mut self, now: Instant, code: VarInt, text: &'static str) {
        if !self.closed {
            self.shared.metrics.count_closed(Reason::Protocol);
            self.end_with(now, code, text);
        }
    }

    /// Ends the connection for a reason that is counted.
    pub(crate) fn close(&mut self, now: Instant, why: Ending, text: &'static str, reason: Reason) {
        if !self.closed {
            self.shared.metrics.count_closed(reason);
            self.end(now, why, text);
        }
    }

    /// Ends the connection.
    pub(crate) fn end(&mut self, now: Instant, why: Ending, text: &'static str) {
        let code = match (self.protocol, why) {
            (Some(Protocol::Native), Ending::Done) => VarInt::from_u32(0),
            (Some(Protocol::Native), Ending::Leaving) => refusal(RefusalCode::GOING_AWAY),
            (Some(Protocol::Native), Ending::Overload) => refusal(RefusalCode::LIMIT),
            (_, Ending::Done | Ending::Leaving) => code(Code::H3_NO_ERROR),
            (_, Ending::Overload) => code(Code::H3_EXCESSIVE_LOAD),
        };
        self.end_with(now, code, text);
    }

    fn end_with(&mut self, now: Instant, code: VarInt, text: &'static str) {
        if !self.closed {
            self.quic.close(now, code, Bytes::from_static(text.as_bytes()));
            self.let_go();
        }
    }

    /// The handshake is over, in whichever way.
    pub(crate) fn end_handshake(&mut self) {
        if self.handshaking {
            self.handshaking = false;
            self.shared.handshaking.set(self.shared.handshaking.get() - 1);
        }
    }

    /// It is closed; only the client is to be told.
    pub(crate) fn let_go(&mut self) {
        self.closed = true;
        self.end_handshake();
        self.connected = None;
    }
}

/// A code of HTTP/3 as QUIC has it.
pub(crate) fn code(code: Code) -> VarInt {
    VarInt::from_u64(code.0).unwrap_or(VarInt::from_u32(0x101))
}

/// A code of the native protocol as QUIC has it.
pub(crate) fn refusal(code: RefusalCode) -> VarInt {
    VarInt::from_u32(code.0)
}

pub(crate) fn number(id: StreamId) -> u64 {
    VarInt::from(id).into_inner()
}

/// The stream with this number, which came from quinn in the first place.
pub(crate) fn id_of(stream: u64) -> StreamId {
    StreamId::from(VarInt::from_u64(stream).expect("it was a variable-length integer"))
}
