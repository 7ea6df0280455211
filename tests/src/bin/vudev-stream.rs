//! Sends a long TCP stream of known contents, or takes one in, and sums it up: for a guest of the
//! tests under software emulation, where pipes between tools of a kilobyte at a time are slow.
//!
//!     vudev-stream send ADDRESS PORT MIB
//!     vudev-stream receive PORT
//!
//! It prints how many bytes went, and their checksum.

use std::io::{self, Read};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;

use vudev_tests::streams::{Streamed, drain, pour};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let streamed = match words[..] {
        ["send", address, port, mib] => send(address, number(port), number(mib)),
        ["receive", port] => receive(number(port)),
        _ => {
            eprintln!("usage: vudev-stream send ADDRESS PORT MIB | receive PORT");
            return ExitCode::from(2);
        }
    };
    match streamed {
        Ok(streamed) => {
            println!("{} {streamed}", words[0]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u16 {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no number of 16 bits"))
}

fn send(address: &str, port: u16, mib: u16) -> io::Result<Streamed> {
    let mut stream = TcpStream::connect((address, port))?;
    let sent = pour(&stream, mib)?;
    stream.shutdown(Shutdown::Write)?;
    // A guest may switch off next, with whatever still waits to be sent: the other side reads to
    // the end before it closes.
    match stream.read(&mut [0])? {
        0 => Ok(sent),
        _ => Err(io::Error::other("an answer came to a stream that has none")),
    }
}

fn receive(port: u16) -> io::Result<Streamed> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    println!("listening");
    let (stream, _) = listener.accept()?;
    drain(&stream)
}
