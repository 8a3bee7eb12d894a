//! The service name of a cluster, as DNS would resolve it, whose nodes change: one port that leads to the sessions' port
//! of one of the nodes that there are now.
#![allow(dead_code, clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, RwLock};

/// See the module.
pub struct ServiceName {
    pub address: String,
    nodes: Arc<RwLock<Vec<String>>>,
}

impl ServiceName {
    pub fn new(nodes: &[&str]) -> ServiceName {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let name = ServiceName { address, nodes: Arc::default() };
        name.set(nodes);
        let nodes = name.nodes.clone();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let nodes = nodes.read().unwrap().clone();
                let mut tried = nodes.iter().cycle().skip(number).take(nodes.len());
                let node = tried.find_map(|node| TcpStream::connect(node).ok());
                if let (Ok(stream), Some(node)) = (stream, node) {
                    stream.set_nodelay(true).unwrap();
                    node.set_nodelay(true).unwrap();
                    forward(stream.try_clone().unwrap(), node.try_clone().unwrap());
                    forward(node, stream);
                }
            }
        });
        name
    }

    pub fn set(&self, nodes: &[&str]) {
        *self.nodes.write().unwrap() = nodes.iter().map(|node| (*node).to_owned()).collect();
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    std::thread::spawn(move || {
        // However it ends, the other side learns of it.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
}
