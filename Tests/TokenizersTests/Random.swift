/// A small generator with a fixed seed (SplitMix64), so that a failure can be repeated.
struct SeededGenerator: RandomNumberGenerator {
  private var state: UInt64

  init(_ seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var mixed = state
    mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
    mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
    return mixed ^ (mixed >> 31)
  }

  /// A text of up to `length` characters, half of them from `common`, the rest from all scripts.
  ///
  /// The ranges hold scalars whose classes have been the same since Unicode 9, so that every
  /// implementation agrees about them.
  mutating func text(length: Int, common: [String]) -> String {
    var text = ""
    for _ in 0..<Int.random(in: 0...length, using: &self) {
      if Bool.random(using: &self), let piece = common.randomElement(using: &self) {
        text += piece
      } else if let range = Self.ranges.randomElement(using: &self),
        let scalar = Unicode.Scalar(UInt32.random(in: range, using: &self))
      {
        text.unicodeScalars.append(scalar)
      }
    }
    return text
  }

  private static let ranges: [ClosedRange<UInt32>] = [
    0...0x7F, 0x80...0xFF, 0x100...0x24F, 0x1C4...0x1CC, 0x2B0...0x2FF, 0x300...0x33F,
    0x390...0x3FF, 0x400...0x45F, 0x5D0...0x5EA, 0x621...0x652, 0x660...0x669, 0x900...0x939,
    0x93E...0x94D, 0xE01...0xE2E, 0xE31...0xE3A, 0x1100...0x1112, 0x1161...0x1175, 0x11A8...0x11C2,
    0x1E00...0x1EFF, 0x1F88...0x1FAF, 0x2000...0x2064, 0x20AC...0x20AC, 0x20D0...0x20E0,
    0x2100...0x2130, 0x2150...0x2188, 0x2190...0x23FF, 0x2460...0x24FF, 0x3000...0x303F,
    0x3041...0x3096, 0x3099...0x309F, 0x30A1...0x30FF, 0x4E00...0x4EFF, 0xAC00...0xACFF,
    0xF900...0xF9FF, 0xFB00...0xFB06, 0xFF10...0xFF5A, 0x10330...0x1034A, 0x1D400...0x1D450,
    0x1D7CE...0x1D7FF, 0x1F600...0x1F64F, 0x20000...0x20100, 0x2F800...0x2F8FF,
  ]
}
