// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request at a time: open files and directories. Only sound while nothing else is in flight on
//! the queue.

use crate::fuse::types::{CopyFileRange, LockIn};
use crate::fuse::types::{Entry, Opened};

use super::decode::{DirEntry, FileLock, Reader};
use super::error::FuseResult;
use super::queue::FuseQueue;
use super::request::Request;

#[expect(
    missing_docs,
    clippy::missing_errors_doc,
    reason = "one method per operation: it fails with the device's errno, or if there is no sound reply"
)]
impl FuseQueue {
    pub fn open(&mut self, node: u64, flags: u32) -> FuseResult<Opened> {
        self.opened(&Request::open(node, flags))
    }

    pub fn create(
        &mut self,
        parent: u64,
        name: impl AsRef<[u8]>,
        flags: u32,
        mode: u32,
    ) -> FuseResult<(Entry, Opened)> {
        self.created(&Request::create(parent, name, flags, mode, 0))
    }

    pub fn tmpfile(&mut self, parent: u64, flags: u32, mode: u32) -> FuseResult<(Entry, Opened)> {
        self.created(&Request::tmpfile(parent, flags, mode, 0))
    }

    pub fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> FuseResult<Vec<u8>> {
        self.call(&Request::read(node, handle, offset, size))
    }

    /// Bytes written.
    pub fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> FuseResult<u32> {
        let size = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let reply = self.call_with(&Request::write(node, handle, offset, size), data)?;
        let mut reader = Reader::new(&reply);
        let written = reader.u32()?;
        reader.skip(4)?;
        reader.end(written)
    }

    pub fn release_file(&mut self, node: u64, handle: u64) -> FuseResult<()> {
        self.call_empty(&Request::release(node, handle, 0))
    }

    pub fn fsync(&mut self, node: u64, handle: u64, data_only: bool) -> FuseResult<()> {
        self.call_empty(&Request::fsync(node, handle, data_only))
    }

    pub fn flush(&mut self, node: u64, handle: u64, lock_owner: u64) -> FuseResult<()> {
        self.call_empty(&Request::flush(node, handle, lock_owner))
    }

    pub fn fallocate(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        len_bytes: u64,
        mode: u32,
    ) -> FuseResult<()> {
        self.call_empty(&Request::fallocate(node, handle, offset, len_bytes, mode))
    }

    pub fn lseek(&mut self, node: u64, handle: u64, offset: u64, whence: u32) -> FuseResult<u64> {
        self.number(&Request::lseek(node, handle, offset, whence))
    }

    /// Bytes copied.
    pub fn copy_file_range(&mut self, node: u64, copy: &CopyFileRange) -> FuseResult<u64> {
        let request = Request::copy_file_range(node, copy);
        if copy.wide {
            self.number(&request)
        } else {
            self.size(&request).map(u64::from)
        }
    }

    pub fn getlk(&mut self, node: u64, lock: &LockIn) -> FuseResult<FileLock> {
        let reply = self.call(&Request::getlk(node, lock))?;
        let mut reader = Reader::new(&reply);
        let lock = reader.lock()?;
        reader.end(lock)
    }

    pub fn setlk(&mut self, node: u64, lock: &LockIn, waits: bool) -> FuseResult<()> {
        self.call_empty(&Request::setlk(node, lock, waits))
    }

    /// The result and the data that go back to the caller of `ioctl(2)`.
    pub fn ioctl(
        &mut self,
        node: u64,
        handle: u64,
        command: u32,
        data: &[u8],
        out_bytes: u32,
    ) -> FuseResult<(u32, Vec<u8>)> {
        let reply = self.call(&Request::ioctl(node, handle, command, data, out_bytes))?;
        let mut reader = Reader::new(&reply);
        let result = reader.u32()?;
        reader.skip(12)?;
        Ok((result, reader.rest().to_vec()))
    }

    pub fn opendir(&mut self, node: u64) -> FuseResult<Opened> {
        self.opened(&Request::opendir(node, 0))
    }

    pub fn readdir(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> FuseResult<Vec<DirEntry>> {
        let reply = self.call(&Request::readdir(node, handle, offset, size))?;
        Reader::new(&reply).dir_entries(false)
    }

    pub fn readdirplus(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
    ) -> FuseResult<Vec<DirEntry>> {
        let reply = self.call(&Request::readdirplus(node, handle, offset, size))?;
        Reader::new(&reply).dir_entries(true)
    }

    pub fn releasedir(&mut self, node: u64, handle: u64) -> FuseResult<()> {
        self.call_empty(&Request::releasedir(node, handle))
    }

    pub fn fsyncdir(&mut self, node: u64, handle: u64, data_only: bool) -> FuseResult<()> {
        self.call_empty(&Request::fsyncdir(node, handle, data_only))
    }

    fn opened(&mut self, request: &Request) -> FuseResult<Opened> {
        let reply = self.call(request)?;
        let mut reader = Reader::new(&reply);
        let opened = reader.opened()?;
        reader.end(opened)
    }

    fn created(&mut self, request: &Request) -> FuseResult<(Entry, Opened)> {
        let reply = self.call(request)?;
        let mut reader = Reader::new(&reply);
        let created = (reader.entry()?, reader.opened()?);
        reader.end(created)
    }

    fn number(&mut self, request: &Request) -> FuseResult<u64> {
        let reply = self.call(request)?;
        let mut reader = Reader::new(&reply);
        let number = reader.u64()?;
        reader.end(number)
    }
}
