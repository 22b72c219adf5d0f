import PEFTSupport

/// A number of bytes in the unit that suits it.
func byteSize(_ count: Int) -> String {
  var size = Double(count)
  var unit = "bytes"
  for larger in ["kB", "MB", "GB"] where size >= 1000 { (size, unit) = (size / 1000, larger) }
  return unit == "bytes" ? "\(count) bytes" : "\(fixed(size, 1)) \(unit)"
}
