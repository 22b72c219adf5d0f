import PEFTCore
import PEFTSupport

extension TunerConfig {
  /// The first key that the method does not know, and what may have been meant: in settings that
  /// someone wrote it is a mistake, where in a file it may be another program's.
  ///
  /// A key of a mapping is named with it, `mapping.key`, and compared with that mapping's keys.
  ///
  /// - Parameter others: Keys that the method knows but does not write.
  public func unknownKey(besides others: [String] = []) -> (key: String, remedy: String)? {
    let unknown = unknownKeys
    guard let key = unknown.keys.first else { return nil }
    let members = object
    if let dot = key.firstIndex(of: "."), members[key] == nil,
      let inner = members[String(key[..<dot])]?.object
    {
      let prefix = String(key[...dot])
      let known = inner.keys.filter { unknown[prefix + $0] == nil }
      let word = String(key[key.index(after: dot)...])
      return (key, Spelling.suggestion(for: word, among: known))
    }
    let known = members.keys.filter { unknown[$0] == nil } + others
    return (key, Spelling.suggestion(for: key, among: known))
  }
}
