import NN
import PEFTSupport

extension PeftModel {
  /// Merges adapters into the base weights; unmerging restores those to the bit.
  ///
  /// The deltas of all of them, and of those merged before, are summed first and rounded once.
  /// When it throws, the model is as it was before.
  ///
  /// - Parameters:
  ///   - names: The adapters; the active ones by default.
  ///   - safe: Whether merged weights are checked to be finite.
  /// - Throws: ``PEFTError``: unknown names, `unsupported` for changes that no weight can take,
  ///   `invalidAdapter` for rows that two of them train, or `numericalFailure` from the check.
  public func merge(_ names: [String]? = nil, safe: Bool = false) throws {
    warnings = []
    let wanted = names ?? selection.active
    for name in wanted { _ = try record(name) }
    var all = mergedAdapters
    for name in wanted where !all.contains(name) { all.append(name) }
    if all.count == mergedAdapters.count {
      if !all.isEmpty { warnings = ["All adapters are already merged, nothing to do."] }
      return
    }
    if !mergedAdapters.isEmpty {
      warnings = [
        "Already following adapters were merged \(mergedAdapters.joined(separator: ",")). You are "
          + "now additionally merging \(all[mergedAdapters.count...].joined(separator: ","))."
      ]
    }
    var results: [(AdapterStack, any AdapterHost, HostParameters)] = []
    for (_, host) in hosts {
      guard let stack = host.stack,
        let merged = try stack.mergedParameters(all, host: host, checkingFinite: safe)
      else { continue }
      results.append((stack, host, merged))
    }
    for (stack, host, merged) in results { stack.setMerged(all, merged, host: host) }
    mergedAdapters = all
  }

  /// Takes all merged adapters out of the base weights again.
  public func unmerge() {
    warnings = mergedAdapters.isEmpty ? ["Already unmerged. Nothing to do."] : []
    for (_, host) in hosts { host.stack?.unmerge(host: host) }
    mergedAdapters = []
  }

  /// Removes all adapters; the base is as it was at first. Modules trained in full by an active
  /// adapter stay replaced, as in peft.
  ///
  /// - Returns: The base model.
  @discardableResult
  public func unload() -> any Module {
    unmerge()
    warnings = []
    for (_, host) in hosts { host.stack?.restoreBias() }
    removeAll()
    if selection.replication != nil { undoReplication() }
    return base
  }

  /// Merges the active adapters for good and removes all adapters.
  ///
  /// - Returns: The base model with changed weights.
  /// - Throws: What ``merge(_:safe:)`` throws.
  @discardableResult
  public func mergeAndUnload(safe: Bool = false) throws -> any Module {
    try merge(safe: safe)
    removeAll()
    return base
  }

  private func removeAll() {
    for record in records {
      forEachParameter(of: record) { parameter, _ in parameter.isTrainable = false }
    }
    for (_, host) in hosts {
      guard let stack = host.stack else { continue }
      stack.keep(selection.active, host: host)
      stack.restoreBias()
      host.adapters = nil
    }
    for name in adapterNames { selection.remove(name) }
    records = []
    selection.active = []
    selection.isDisabled = false
    mergedAdapters = []
  }
}
