import BLASKernels
import PEFTSupport

/// The directory of a zip file whose members are stored without compression, as torch writes them.
///
/// Offsets and sizes are checked against the file before anything is read, zip64 included. Format:
/// PKWARE's APPNOTE.TXT, sections 4.3 and 4.5.3.
struct ZipArchive: Sendable {
  /// One member.
  struct Member: Sendable {
    /// The name with its folders.
    let name: String
    /// Where its bytes are in the file.
    let range: Range<Int>
    /// What the CRC-32 of these bytes has to be.
    let checksum: UInt32
  }

  /// The members in the directory's order.
  let members: [Member]
  private let file: MappedFile
  private let index: [String: Int]

  /// Whether a file begins like a zip.
  static func begins(_ file: MappedFile) -> Bool {
    file.byteCount >= 4 && file.bytes(0..<4) == [0x50, 0x4B, 3, 4]
  }

  /// Reads the directory.
  ///
  /// - Throws: ``PEFTError`` `malformedFile` for what is cut, out of bounds or contradictory,
  ///   `unsupported` for compressed and encrypted members.
  init(_ file: MappedFile) throws(PEFTError) {
    self.file = file
    let fields = FileFields(file)
    let directory = try Self.findDirectory(fields)
    var members: [Member] = []
    var index: [String: Int] = [:]
    var position = directory.start
    for _ in 0..<directory.count {
      let entry = try DirectoryEntry(fields, at: position, end: directory.end)
      position = entry.end
      guard index.updateValue(members.count, forKey: entry.name) == nil else {
        throw Self.malformed("the member '\(entry.name)' is listed twice")
      }
      members.append(try Self.member(entry, fields, dataEnd: directory.start))
    }
    if position != directory.end {
      throw Self.malformed("its directory has \(directory.end - position) bytes too many")
    }
    self.members = members
    self.index = index
  }

  /// The member of a name.
  subscript(name: String) -> Member? { index[name].map { members[$0] } }

  /// The bytes of a member, after its checksum has been compared.
  func bytes(_ member: Member) throws(PEFTError) -> [UInt8] {
    try check(member)
    return file.bytes(member.range)
  }

  /// Compares a member's checksum.
  func check(_ member: Member) throws(PEFTError) {
    guard file.crc32(member.range) == member.checksum else {
      throw Self.malformed("the checksum of its member '\(member.name)' is wrong")
    }
  }

  static func malformed(_ message: String) -> PEFTError {
    PEFTError(
      .malformedFile, "not a valid zip file: \(message)", remedy: "Obtain the file again.")
  }

  // MARK: Pieces

  private struct Directory {
    var count: Int
    var start: Int
    var end: Int
  }

  /// Follows the record at the end of the file to the directory.
  private static func findDirectory(_ fields: FileFields) throws(PEFTError) -> Directory {
    let size = fields.byteCount
    // The record is followed by a comment of up to 65535 bytes.
    var record: Int?
    var place = size - 22
    while place >= 0, place >= size - 22 - 65535 {
      if try fields.u32(place) == 0x0605_4B50 {
        let comment = Int(try fields.u16(place + 20))
        if place + 22 + comment == size {
          record = place
          break
        }
      }
      place -= 1
    }
    guard let record else { throw malformed("it has no end: the file is cut") }
    let disk = try fields.u16(record + 4)
    guard disk == 0 || disk == 0xFFFF else {
      throw PEFTError(.unsupported, "zip files in several parts are not supported")
    }
    var count = UInt64(try fields.u16(record + 10))
    var length = UInt64(try fields.u32(record + 12))
    var start = UInt64(try fields.u32(record + 16))
    var end = record
    if count == 0xFFFF || length == 0xFFFF_FFFF || start == 0xFFFF_FFFF {
      // Larger numbers are in a zip64 record, which a locator in front of this one points to.
      guard record >= 20, try fields.u32(record - 20) == 0x0706_4B50 else {
        throw malformed("the zip64 record is missing")
      }
      let wide = try fields.offset(try fields.u64(record - 12), below: record - 20)
      guard try fields.u32(wide) == 0x0606_4B50 else {
        throw malformed("the zip64 record is wrong")
      }
      count = try fields.u64(wide + 32)
      length = try fields.u64(wide + 40)
      start = try fields.u64(wide + 48)
      end = wide
    }
    let first = try fields.offset(start, below: end)
    // An entry takes at least 46 bytes, so the count cannot ask for much memory.
    guard length <= UInt64(end - first), count <= length / 46 else {
      throw malformed("its directory reaches beyond its end")
    }
    return Directory(count: Int(count), start: first, end: first + Int(length))
  }

  /// One entry of the directory, zip64 fields resolved.
  private struct DirectoryEntry {
    let name: String
    let end: Int
    let checksum: UInt32
    private(set) var size: UInt64
    private(set) var header: UInt64

    init(_ fields: FileFields, at place: Int, end: Int) throws(PEFTError) {
      guard place + 46 <= end, try fields.u32(place) == 0x0201_4B50 else {
        throw ZipArchive.malformed("its directory is cut or overwritten")
      }
      let nameLength = Int(try fields.u16(place + 28))
      let extraLength = Int(try fields.u16(place + 30))
      let extra = place + 46 + nameLength
      self.end = try extra + extraLength + Int(fields.u16(place + 32))
      guard self.end <= end else { throw ZipArchive.malformed("its directory is cut") }
      guard let name = String(validating: fields.bytes(place + 46..<extra), as: UTF8.self) else {
        throw ZipArchive.malformed("the name of a member is not UTF-8")
      }
      self.name = name
      checksum = try fields.u32(place + 16)
      size = UInt64(try fields.u32(place + 24))
      header = UInt64(try fields.u32(place + 42))
      var packed = UInt64(try fields.u32(place + 20))
      try readWide(fields, extra..<extra + extraLength, &packed)
      let flags = try fields.u16(place + 8)
      if flags & 1 != 0 {
        throw PEFTError(.unsupported, "the zip member '\(name)' is encrypted")
      }
      let method = try fields.u16(place + 10)
      guard method == 0 else {
        throw PEFTError(
          .unsupported, "the zip member '\(name)' is compressed (method \(method))",
          remedy: "torch stores members without compression: save the file with torch.save again.")
      }
      guard packed == size else {
        throw ZipArchive.malformed("the sizes of the stored member '\(name)' differ")
      }
    }

    /// The zip64 field holds, in this order, those of the three numbers that are all ones.
    private mutating func readWide(
      _ fields: FileFields, _ extra: Range<Int>, _ packed: inout UInt64
    ) throws(PEFTError) {
      guard size == 0xFFFF_FFFF || packed == 0xFFFF_FFFF || header == 0xFFFF_FFFF else { return }
      var place = extra.lowerBound
      while place + 4 <= extra.upperBound {
        let length = Int(try fields.u16(place + 2))
        let end = place + 4 + length
        guard end <= extra.upperBound else { break }
        guard try fields.u16(place) == 1 else {
          place = end
          continue
        }
        place += 4
        func next() throws(PEFTError) -> UInt64 {
          guard place + 8 <= end else {
            throw ZipArchive.malformed("the zip64 field of '\(name)' is too short")
          }
          defer { place += 8 }
          return try fields.u64(place)
        }
        if size == 0xFFFF_FFFF { size = try next() }
        if packed == 0xFFFF_FFFF { packed = try next() }
        if header == 0xFFFF_FFFF { header = try next() }
        return
      }
      throw ZipArchive.malformed("the zip64 field of '\(name)' is missing")
    }
  }

  /// Finds a member's bytes behind its local header, whose fields may be longer than those in the
  /// directory.
  private static func member(
    _ entry: DirectoryEntry, _ fields: FileFields, dataEnd: Int
  ) throws(PEFTError) -> Member {
    let header = try fields.offset(entry.header, below: dataEnd)
    guard header + 30 <= dataEnd, try fields.u32(header) == 0x0403_4B50 else {
      throw malformed("the header of '\(entry.name)' is not where the directory says")
    }
    let nameLength = Int(try fields.u16(header + 26))
    let start = try header + 30 + nameLength + Int(fields.u16(header + 28))
    guard start <= dataEnd, entry.size <= UInt64(dataEnd - start) else {
      throw malformed("the member '\(entry.name)' reaches into the directory")
    }
    guard fields.bytes(header + 30..<header + 30 + nameLength) == Array(entry.name.utf8) else {
      throw malformed("the header of '\(entry.name)' has another name")
    }
    return Member(
      name: entry.name, range: start..<start + Int(entry.size), checksum: entry.checksum)
  }
}

/// Little-endian numbers of a mapped file, each within its bounds.
struct FileFields {
  private let file: MappedFile

  init(_ file: MappedFile) { self.file = file }

  var byteCount: Int { file.byteCount }

  func u16(_ place: Int) throws(PEFTError) -> UInt16 { try number(place) }
  func u32(_ place: Int) throws(PEFTError) -> UInt32 { try number(place) }
  func u64(_ place: Int) throws(PEFTError) -> UInt64 { try number(place) }

  /// Bytes of a range that lies in the file.
  func bytes(_ range: Range<Int>) -> [UInt8] { file.bytes(range) }

  /// A place in the file, from a number of any size.
  func offset(_ value: UInt64, below limit: Int) throws(PEFTError) -> Int {
    guard limit >= 0, value <= UInt64(limit) else {
      throw ZipArchive.malformed("it points to byte \(value), beyond its content")
    }
    return Int(value)
  }

  private func number<Value: FixedWidthInteger>(_ place: Int) throws(PEFTError) -> Value {
    let size = MemoryLayout<Value>.size
    guard place >= 0, place <= file.byteCount - size else {
      throw ZipArchive.malformed("it is cut")
    }
    return file.bytes(place..<place + size).reversed().reduce(0) { $0 << 8 | Value($1) }
  }
}
