// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The README's lines for libvirt, and what libvirt makes of them.
//!
//! They are read to the last attribute: one that is not known here is an error, for nobody would
//! know what it does.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// What is wrong is a text.
type Result<T> = std::result::Result<T, String>;

/// The text of the README.
pub const README: &str = include_str!("../README.md");

/// The lines that are indented below `section` and `heading` of the README, without the indent.
///
/// # Errors
///
/// When there is no such heading.
pub fn readme_lines(section: &str, heading: &str) -> Result<Vec<&'static str>> {
    let text = README.split(&format!("\n## {section}\n")).nth(1);
    let text = text.and_then(|text| text.split("\n## ").next());
    let text = match heading {
        // What comes before any.
        "" => text.and_then(|text| text.split("\n### ").next()),
        _ => text
            .and_then(|text| text.split(&format!("\n### {heading}\n")).nth(1))
            .and_then(|text| text.split("\n### ").next()),
    };
    let text = text.ok_or_else(|| format!("nothing below {section:?}, {heading:?}"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .collect())
}

/// The attributes of elements that lie in each other, by their paths: `disk/source@path`.
#[derive(Debug, Default)]
struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// Reads elements that have attributes and each other, and nothing else.
    fn read(text: &str) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut open: Vec<&str> = Vec::new();
        for piece in text.split('<').skip(1) {
            let (tag, behind) = piece.split_once('>').ok_or("a tag without an end")?;
            if !matches!(behind.trim(), "" | "...") {
                return Err(format!("text between elements: {behind:?}"));
            }
            if let Some(name) = tag.strip_prefix('/') {
                if open.pop() != Some(name) {
                    return Err(format!("</{name}> ends nothing"));
                }
                continue;
            }
            let (tag, is_empty) = match tag.strip_suffix('/') {
                Some(tag) => (tag, true),
                None => (tag, false),
            };
            let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
            open.push(name);
            while !rest.trim().is_empty() {
                let (key, value) = rest.split_once("='").ok_or("no value")?;
                let (value, behind) = value.split_once('\'').ok_or("no end of a value")?;
                let key = format!("{}@{}", open.join("/"), key.trim());
                if let Some(before) = found.insert(key, value.to_owned()) {
                    return Err(format!("{tag}: twice, {before:?} and {value:?}"));
                }
                rest = behind;
            }
            if is_empty {
                open.pop();
            }
        }
        match open.pop() {
            None => Ok(Self(found)),
            Some(name) => Err(format!("<{name}> has no end")),
        }
    }

    /// Those of the README's lines below `section`.
    fn of(section: &str) -> Result<Self> {
        Self::read(&readme_lines(section, "libvirt")?.join("\n"))
    }

    fn take(&mut self, path: &str) -> Result<String> {
        let taken = self.0.remove(path);
        taken.ok_or_else(|| format!("no {path} in {:?}", self.0))
    }

    fn number<T: FromStr<Err: Display>>(&mut self, path: &str) -> Result<T> {
        let number = self.take(path)?.parse();
        number.map_err(|error| format!("{path}: {error}"))
    }

    /// Takes those that say what libvirt needs to know and nobody else.
    fn expect(&mut self, expected: &[(&str, &str)]) -> Result<()> {
        for (path, wanted) in expected {
            let found = self.take(path)?;
            if found != *wanted {
                return Err(format!("{path} is {found:?}, not {wanted:?}"));
            }
        }
        Ok(())
    }

    /// `-object memory-backend-memfd,share=on`.
    fn expect_shared_memory(&mut self) -> Result<()> {
        self.expect(&[
            ("memoryBacking/source@type", "memfd"),
            ("memoryBacking/access@mode", "shared"),
        ])
    }

    /// `reconnect=` of a chardev.
    fn reconnect(&mut self, of: &str) -> Result<Duration> {
        self.expect(&[(&format!("{of}/source/reconnect@enabled"), "yes")])?;
        let seconds = self.number(&format!("{of}/source/reconnect@timeout"))?;
        Ok(Duration::from_secs(seconds))
    }

    fn end(self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(format!("nobody knows what these do: {:?}", self.0))
    }
}

/// `<disk>`: `-chardev socket,path=SOCKET,reconnect=RECONNECT` and
/// `-device vhost-user-blk-pci,num-queues=QUEUES`.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LibvirtDisk {
    pub socket: PathBuf,
    pub reconnect: Duration,
    pub queues: u16,
}

impl LibvirtDisk {
    /// The README's.
    ///
    /// # Errors
    ///
    /// When something in it is not as libvirt wants it.
    pub fn of_readme() -> Result<Self> {
        let mut xml = Attributes::of("Serve a disk")?;
        xml.expect_shared_memory()?;
        xml.expect(&[
            ("disk@type", "vhostuser"),
            ("disk@device", "disk"),
            ("disk/driver@name", "qemu"),
            ("disk/driver@type", "raw"),
            ("disk/source@type", "unix"),
            ("disk/target@dev", "vda"),
            ("disk/target@bus", "virtio"),
        ])?;
        let disk = Self {
            socket: xml.take("disk/source@path")?.into(),
            reconnect: xml.reconnect("disk")?,
            queues: xml.number("disk/driver@queues")?,
        };
        xml.end().map(|()| disk)
    }
}

/// `<interface>`: `-chardev socket,path=SOCKET,reconnect=RECONNECT`,
/// `-netdev vhost-user,queues=PAIRS` and `-device virtio-net-pci,mq=on,mac=MAC`.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LibvirtInterface {
    pub socket: PathBuf,
    pub reconnect: Duration,
    pub pairs: u16,
    pub mac: String,
}

impl LibvirtInterface {
    /// The README's.
    ///
    /// # Errors
    ///
    /// As of a disk.
    pub fn of_readme() -> Result<Self> {
        let mut xml = Attributes::of("Serve a network")?;
        xml.expect_shared_memory()?;
        xml.expect(&[
            ("interface@type", "vhostuser"),
            ("interface/source@type", "unix"),
            ("interface/source@mode", "client"),
            ("interface/model@type", "virtio"),
        ])?;
        let interface = Self {
            socket: xml.take("interface/source@path")?.into(),
            reconnect: xml.reconnect("interface")?,
            pairs: xml.number("interface/driver@queues")?,
            mac: xml.take("interface/mac@address")?,
        };
        xml.end().map(|()| interface)
    }
}

/// `<filesystem>`: libvirt starts `binary` itself, which shares `dir`, and
/// `-device vhost-user-fs-pci,queue-size=QUEUE_SIZE,tag=TAG`.
#[derive(Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LibvirtFilesystem {
    pub binary: PathBuf,
    pub dir: String,
    pub queue_size: u16,
    pub tag: String,
}

impl LibvirtFilesystem {
    /// The README's, which has extended attributes.
    ///
    /// # Errors
    ///
    /// As of a disk.
    pub fn of_readme() -> Result<Self> {
        let mut xml = Attributes::of("Share a folder")?;
        xml.expect_shared_memory()?;
        xml.expect(&[
            ("filesystem@type", "mount"),
            ("filesystem/driver@type", "virtiofs"),
            ("filesystem/binary@xattr", "on"),
        ])?;
        let filesystem = Self {
            binary: xml.take("filesystem/binary@path")?.into(),
            dir: xml.take("filesystem/source@dir")?,
            queue_size: xml.number("filesystem/driver@queue")?,
            tag: xml.take("filesystem/target@dir")?,
        };
        xml.end().map(|()| filesystem)
    }

    /// What libvirt starts `binary` with since it asks for its options one by one, and before (9.0);
    /// but for the socket, which is passed.
    #[must_use]
    pub fn arguments(&self) -> [Vec<String>; 2] {
        let (dir, list) = (&self.dir, format!("source={},xattr", self.dir));
        let words = |words: &[&str]| words.iter().copied().map(str::to_owned).collect();
        [
            words(&["--shared-dir", dir, "--xattr"]),
            words(&["-o", &list]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_by_the_paths_of_their_elements() {
        let text = "<a x='1'>\n <b/>\n <c y='2' z='3 4'/>\n</a>\n...\n<d/>";
        let found = Attributes::read(text).unwrap().0;
        let expected = [("a@x", "1"), ("a/c@y", "2"), ("a/c@z", "3 4")];
        let expected = expected.map(|(path, value)| (path.to_owned(), value.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
    }

    #[test]
    fn what_is_no_xml_is_refused() {
        for text in [
            "<a>",
            "<a></b>",
            "</a>",
            "<a x=1/>",
            "<a x='1/>",
            "<a>text</a>",
            "<a x='1' x='2'/>",
            "<a",
        ] {
            assert!(Attributes::read(text).is_err(), "{text}");
        }
    }
}
