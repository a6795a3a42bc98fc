// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Opening things in another network namespace.
//!
//! A tap or a packet socket belongs to the namespace of the thread that opened it, and can be used
//! from any. So a thread is made that enters the namespace, opens, and ends; the process stays
//! where it is.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::LinkError;

/// Where `ip netns add` puts its namespaces.
const NAMED: &str = "/run/netns";

/// A network namespace, within reach whatever becomes of its path.
#[derive(Debug)]
pub(super) struct Namespace(Option<(PathBuf, OwnedFd)>);

impl Namespace {
    /// One by its path, as `/proc/1234/ns/net`, or a name of `ip netns`; without one, that of the
    /// thread.
    pub(super) fn open(namespace: Option<&Path>) -> Result<Self, LinkError> {
        let Some(namespace) = namespace else {
            return Ok(Self(None));
        };
        let path = resolve(namespace);
        match open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Self(Some((path, file)))),
            Err(errno) => Err(failed(&path, errno)),
        }
    }

    /// The one that a descriptor is of.
    pub(super) fn of(file: OwnedFd) -> Self {
        Self(Some((PathBuf::from("of the descriptor"), file)))
    }

    /// Does `work` in it.
    pub(super) fn within<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, LinkError> + Send,
    ) -> Result<T, LinkError> {
        let Some((path, file)) = &self.0 else {
            return work();
        };
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .map_err(|errno| failed(path, errno))?;
                work()
            });
            // A panic there ends the process, in release; in tests it is to be seen as one.
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn failed(path: &Path, errno: Errno) -> LinkError {
    LinkError::Namespace {
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn resolve(namespace: &Path) -> PathBuf {
    if namespace.as_os_str().as_encoded_bytes().contains(&b'/') {
        namespace.to_owned()
    } else {
        Path::new(NAMED).join(namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_names_and_paths_are_told_apart() {
        assert_eq!(resolve(Path::new("blue")), Path::new("/run/netns/blue"));
        assert_eq!(resolve(Path::new("./blue")), Path::new("./blue"));
        let path = "/proc/1/ns/net";
        assert_eq!(resolve(Path::new(path)), Path::new(path));
    }

    #[test]
    fn namespace_that_is_another_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let namespace = Namespace::open(Some(file.path())).unwrap();
        let result = namespace.within(|| Ok(()));
        let Err(LinkError::Namespace { path, source }) = result else {
            panic!("entered");
        };
        assert_eq!(path, file.path());
        assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
    }
}
