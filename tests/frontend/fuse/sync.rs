// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request at a time: names, attributes, extended attributes. Only sound while nothing else is
//! in flight on the queue.

use crate::fuse::flags::InitFlags;
use crate::fuse::flags::OUT_HEADER_BYTES;
use crate::fuse::types::SetAttr;
use crate::fuse::types::{Attr, Entry, InitOut, Timeout};

use super::decode::{Reader, StatFs};
use super::error::{FuseError, FuseResult};
use super::queue::{Completion, FuseQueue};
use super::request::Request;
use super::slot::FuseSlot;

#[expect(
    missing_docs,
    clippy::missing_errors_doc,
    reason = "one method per operation: it fails with the device's errno, or if there is no sound reply"
)]
impl FuseQueue {
    /// Sends a request and returns what lies behind the header of the reply.
    pub fn call(&mut self, request: &Request) -> FuseResult<Vec<u8>> {
        self.call_with(request, &[])
    }

    /// The same with data behind the arguments, [`Request::data_bytes`] of them.
    pub fn call_with(&mut self, request: &Request, data: &[u8]) -> FuseResult<Vec<u8>> {
        let slot = self.acquire()?;
        self.request_data(slot).write(0, data);
        let sent = self.submit(slot, request);
        if let Err(error) = sent {
            self.release(slot);
            return Err(error.into());
        }
        self.publish()?;
        let completion = self.wait()?;
        // On an error of the ring the slot stays taken: it may still be in flight.
        let reply = self.reply(completion);
        self.release(slot);
        reply
    }

    /// Sends a request that has no reply, and waits until the device has taken it.
    pub fn send(&mut self, request: &Request) -> FuseResult<()> {
        let slot = self.acquire()?;
        self.submit(slot, request)?;
        self.publish()?;
        let completion = self.wait()?;
        self.release(slot);
        expect("used length", completion.used_len, 0_u32)
    }

    /// What lies behind the header of a completed request's reply, if header and used length are
    /// as they must be.
    pub fn reply(&self, completion: Completion) -> FuseResult<Vec<u8>> {
        let header = self.checked_header(completion.slot, completion.used_len)?;
        let mut payload = vec![0; header];
        self.read_reply(completion.slot, &mut payload);
        Ok(payload)
    }

    /// Bytes behind a reply's header, without copying them.
    pub fn checked_header(&self, slot: FuseSlot, used_len: u32) -> FuseResult<usize> {
        let header = self.reply_header(slot);
        expect("unique", header.unique, self.unique(slot))?;
        expect("used length", used_len, header.len_bytes)?;
        if header.error != 0 {
            expect("length of an error", header.len_bytes, 16_u32)?;
            return Err(FuseError::Errno(header.error.wrapping_neg()));
        }
        (header.len_bytes as usize)
            .checked_sub(OUT_HEADER_BYTES)
            .ok_or_else(|| FuseError::Reply {
                what: "length",
                found: header.len_bytes.into(),
                expected: OUT_HEADER_BYTES as u64,
            })
    }

    /// Sends a request whose reply is a header only.
    pub fn call_empty(&mut self, request: &Request) -> FuseResult<()> {
        let reply = self.call(request)?;
        Reader::new(&reply).end(())
    }

    pub fn init(&mut self, flags: InitFlags) -> FuseResult<InitOut> {
        let reply = self.call(&Request::init(flags))?;
        let mut reader = Reader::new(&reply);
        let init = reader.init()?;
        reader.end(init)
    }

    pub fn destroy(&mut self) -> FuseResult<()> {
        self.call_empty(&Request::destroy())
    }

    pub fn lookup(&mut self, parent: u64, name: impl AsRef<[u8]>) -> FuseResult<Entry> {
        self.entry(&Request::lookup(parent, name))
    }

    /// On this queue; on the high-priority queue it is [`super::FuseClient::forget`].
    pub fn forget(&mut self, node: u64, nlookup: u64) -> FuseResult<()> {
        self.send(&Request::forget(node, nlookup))
    }

    pub fn getattr(&mut self, node: u64, handle: Option<u64>) -> FuseResult<(Attr, Timeout)> {
        self.attr(&Request::getattr(node, handle))
    }

    pub fn setattr(&mut self, node: u64, set: &SetAttr) -> FuseResult<(Attr, Timeout)> {
        self.attr(&Request::setattr(node, set))
    }

    /// `struct fuse_statx_out`, undecoded.
    pub fn statx(&mut self, node: u64, flags: u32, mask: u32) -> FuseResult<Vec<u8>> {
        self.call(&Request::statx(node, None, flags, mask))
    }

    pub fn readlink(&mut self, node: u64) -> FuseResult<Vec<u8>> {
        self.call(&Request::readlink(node))
    }

    pub fn symlink(
        &mut self,
        parent: u64,
        name: impl AsRef<[u8]>,
        target: impl AsRef<[u8]>,
    ) -> FuseResult<Entry> {
        self.entry(&Request::symlink(parent, name, target))
    }

    pub fn mknod(
        &mut self,
        parent: u64,
        name: impl AsRef<[u8]>,
        mode: u32,
        rdev: u32,
    ) -> FuseResult<Entry> {
        self.entry(&Request::mknod(parent, name, mode, rdev, 0))
    }

    pub fn mkdir(&mut self, parent: u64, name: impl AsRef<[u8]>, mode: u32) -> FuseResult<Entry> {
        self.entry(&Request::mkdir(parent, name, mode, 0))
    }

    pub fn unlink(&mut self, parent: u64, name: impl AsRef<[u8]>) -> FuseResult<()> {
        self.call_empty(&Request::unlink(parent, name))
    }

    pub fn rmdir(&mut self, parent: u64, name: impl AsRef<[u8]>) -> FuseResult<()> {
        self.call_empty(&Request::rmdir(parent, name))
    }

    pub fn rename(
        &mut self,
        from: (u64, impl AsRef<[u8]>),
        to: (u64, impl AsRef<[u8]>),
        flags: u32,
    ) -> FuseResult<()> {
        self.call_empty(&Request::rename(from, to, flags))
    }

    pub fn link(&mut self, node: u64, parent: u64, name: impl AsRef<[u8]>) -> FuseResult<Entry> {
        self.entry(&Request::link(node, parent, name))
    }

    pub fn statfs(&mut self, node: u64) -> FuseResult<StatFs> {
        let reply = self.call(&Request::statfs(node))?;
        let mut reader = Reader::new(&reply);
        let statfs = reader.statfs()?;
        reader.end(statfs)
    }

    pub fn access(&mut self, node: u64, mask: u32) -> FuseResult<()> {
        self.call_empty(&Request::access(node, mask))
    }

    pub fn syncfs(&mut self, node: u64) -> FuseResult<()> {
        self.call_empty(&Request::syncfs(node))
    }

    pub fn setxattr(
        &mut self,
        node: u64,
        name: impl AsRef<[u8]>,
        value: &[u8],
        flags: u32,
    ) -> FuseResult<()> {
        self.call_empty(&Request::setxattr(
            node,
            name,
            value,
            flags,
            self.setxattr_ext,
        ))
    }

    /// The value, which may have up to `size_bytes`.
    pub fn getxattr(
        &mut self,
        node: u64,
        name: impl AsRef<[u8]>,
        size_bytes: u32,
    ) -> FuseResult<Vec<u8>> {
        self.call(&Request::getxattr(node, name, size_bytes))
    }

    /// Bytes of the value.
    pub fn getxattr_size(&mut self, node: u64, name: impl AsRef<[u8]>) -> FuseResult<u32> {
        self.size(&Request::getxattr(node, name, 0))
    }

    /// The names, each with its NUL, which may have up to `size_bytes` in all.
    pub fn listxattr(&mut self, node: u64, size_bytes: u32) -> FuseResult<Vec<u8>> {
        self.call(&Request::listxattr(node, size_bytes))
    }

    /// Bytes of all names, each with its NUL.
    pub fn listxattr_size(&mut self, node: u64) -> FuseResult<u32> {
        self.size(&Request::listxattr(node, 0))
    }

    pub fn removexattr(&mut self, node: u64, name: impl AsRef<[u8]>) -> FuseResult<()> {
        self.call_empty(&Request::removexattr(node, name))
    }

    /// The reply is a size and padding.
    pub(super) fn size(&mut self, request: &Request) -> FuseResult<u32> {
        let reply = self.call(request)?;
        let mut reader = Reader::new(&reply);
        let size = reader.u32()?;
        reader.skip(4)?;
        reader.end(size)
    }

    fn entry(&mut self, request: &Request) -> FuseResult<Entry> {
        let reply = self.call(request)?;
        let mut reader = Reader::new(&reply);
        let entry = reader.entry()?;
        reader.end(entry)
    }

    fn attr(&mut self, request: &Request) -> FuseResult<(Attr, Timeout)> {
        let reply = self.call(request)?;
        let mut reader = Reader::new(&reply);
        let attr = reader.attr_out()?;
        reader.end(attr)
    }
}

/// Whether a number of the reply is what it must be.
fn expect(what: &'static str, found: impl Into<u64>, expected: impl Into<u64>) -> FuseResult<()> {
    let (found, expected) = (found.into(), expected.into());
    if found == expected {
        return Ok(());
    }
    Err(FuseError::Reply {
        what,
        found,
        expected,
    })
}
