import NN
import PEFTSupport

/// The adapters of a model: their names, settings and which of them are in use.
///
/// One object is shared by all slots of the model, so switching and renaming do not visit the
/// layers. Each adapter has a place, a small number by which slots find its layer; the place of a
/// deleted adapter is used again.
public final class AdapterSelection {
  /// Names of the active adapters in the order in which they were chosen.
  public internal(set) var active: [String] = [] {
    didSet { activePlaces = active.compactMap { places[$0] } }
  }
  /// Whether all adapters are switched off.
  public internal(set) var isDisabled = false
  /// What is known of each adapter, in the order in which they were added.
  var records: [AdapterRecord] = []
  /// The names of the merged adapters.
  var merged: [String] = []
  /// Adapters whose trainability is not what their activity says.
  var adjusted: Set<String> = []
  private(set) var activePlaces: [Int] = []
  /// The places in use, in the order in which they were taken.
  private(set) var order: [Int] = []
  private var places: [String: Int] = [:]
  private var names: [String] = []
  /// Counts who had a place.
  private var stamps: [Int] = []
  private var free: [Int] = []

  /// The place of an adapter.
  func place(of name: String) -> Int? { places[name] }

  /// The name at a place in use.
  func name(at place: Int) -> String { names[place] }

  /// The place of an adapter, which gets one if it has none.
  func takePlace(_ name: String) -> Int {
    if let place = places[name] { return place }
    let place: Int
    if let last = free.popLast() {
      place = last
      names[place] = name
    } else {
      place = names.count
      names.append(name)
      stamps.append(0)
    }
    places[name] = place
    order.append(place)
    return place
  }

  /// Gives a place back.
  func remove(_ name: String) {
    guard let place = places.removeValue(forKey: name) else { return }
    stamps[place] += 1
    order.removeAll { $0 == place }
    free.append(place)
    adjusted.remove(name)
    active.removeAll { $0 == name }
  }

  func rename(_ old: String, to new: String) {
    guard let place = places.removeValue(forKey: old) else { return }
    places[new] = place
    names[place] = new
    active = active.map { $0 == old ? new : $0 }
    if adjusted.remove(old) != nil { adjusted.insert(new) }
    merged = merged.map { $0 == old ? new : $0 }
  }

  /// Places for names, all of which exist or are `__base__`.
  func assign(_ assignment: [String]) -> SequenceAdapters {
    let slots = assignment.map { places[$0] ?? -1 }
    return SequenceAdapters(
      names: assignment, slots: slots, stamps: slots.map { $0 < 0 ? 0 : stamps[$0] })
  }

  /// Whether no adapter of an assignment has been deleted since.
  func isCurrent(_ assignment: SequenceAdapters) -> Bool {
    zip(assignment.slots, assignment.stamps).allSatisfy { $0 < 0 || stamps[$0] == $1 }
  }
}
