/// A module as PyTorch prints it, a tree of type names.
public struct PrintedModule: Equatable, Sendable {
  /// The class name.
  public var typeName: String
  /// What stands between the parentheses of a leaf.
  public var attributes: String
  /// The parts.
  public var children: [Child]

  /// A named part.
  public struct Child: Equatable, Sendable {
    /// The attribute name.
    public var name: String
    /// The part.
    public var module: PrintedModule
  }

  /// Creates a node.
  public init(
    _ typeName: String, attributes: String = "", children: [(String, PrintedModule)] = []
  ) {
    self.typeName = typeName
    self.attributes = attributes
    self.children = children.map { Child(name: $0.0, module: $0.1) }
  }

  /// The text of `print(module)`: two spaces a level, runs of equal modules in a list folded to
  /// `(0-5): 6 x BertLayer(…)`.
  public var text: String {
    var lines: [String] = []
    write(prefix: "", indent: "", to: &lines)
    return lines.joined(separator: "\n")
  }

  private func write(prefix: String, indent: String, to lines: inout [String]) {
    guard !children.isEmpty else {
      let parts = attributes.split(separator: "\n", omittingEmptySubsequences: false)
      if parts.count < 2 {
        lines.append("\(indent)\(prefix)\(typeName)(\(attributes))")
      } else {
        lines.append("\(indent)\(prefix)\(typeName)(")
        lines += parts.map { "\(indent)  \($0)" }
        lines.append("\(indent))")
      }
      return
    }
    lines.append("\(indent)\(prefix)\(typeName)(")
    let deeper = indent + "  "
    var start = 0
    while start < children.count {
      var end = start + 1
      if typeName == "ModuleList" {
        while end < children.count, children[end].module == children[start].module { end += 1 }
      }
      let child = children[start]
      if end - start > 1 {
        let range = "(\(child.name)-\(children[end - 1].name)): \(end - start) x "
        child.module.write(prefix: range, indent: deeper, to: &lines)
      } else {
        child.module.write(prefix: "(\(child.name)): ", indent: deeper, to: &lines)
      }
      start = end
    }
    lines.append("\(indent))")
  }
}

extension Module {
  /// This module and all below it as PyTorch prints them, adapters shown.
  public var printed: PrintedModule {
    let plain = PrintedModule(
      typeName, attributes: attributes, children: children.map { ($0.name, $0.module.printed) })
    guard let host = self as? any AdapterHost, let adapters = host.adapters else { return plain }
    return adapters.printed(around: plain)
  }
}
