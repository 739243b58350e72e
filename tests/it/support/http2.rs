//! HTTP/2 by hand, over blocking sockets: for clients that break the rules h2 keeps.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::DEADLINE;

pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;

/// A frame's type and payload.
pub struct Frame {
    pub kind: u8,
    pub payload: Vec<u8>,
}

/// Connects and greets, with an empty SETTINGS frame; answers nothing by itself.
pub fn connect(address: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    tcp
}

/// Reads to the first frame of `kind`.
pub fn read_until(tcp: &mut TcpStream, kind: u8) -> Frame {
    loop {
        let frame = read_frame(tcp);
        if frame.kind == kind {
            return frame;
        }
    }
}

fn read_frame(tcp: &mut TcpStream) -> Frame {
    let mut head = [0; 9];
    tcp.read_exact(&mut head).unwrap();
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    tcp.read_exact(&mut payload).unwrap();
    Frame { kind: head[3], payload }
}
