/// The element types of the safetensors format.
public enum ElementType: String, Sendable, CaseIterable {
  case float64 = "F64"
  case float32 = "F32"
  case float16 = "F16"
  case bfloat16 = "BF16"
  case int64 = "I64"
  case int32 = "I32"
  case int16 = "I16"
  case int8 = "I8"
  case uint64 = "U64"
  case uint32 = "U32"
  case uint16 = "U16"
  case uint8 = "U8"
  case bool = "BOOL"
  case float8E4M3 = "F8_E4M3"
  case float8E5M2 = "F8_E5M2"

  /// Bytes of one element.
  public var byteCount: Int {
    switch self {
    case .float64, .int64, .uint64: return 8
    case .float32, .int32, .uint32: return 4
    case .float16, .bfloat16, .int16, .uint16: return 2
    case .int8, .uint8, .bool, .float8E4M3, .float8E5M2: return 1
    }
  }

  /// PyTorch's name of the type, without "torch.".
  public var torchName: String {
    switch self {
    case .float64: return "float64"
    case .float32: return "float32"
    case .float16: return "float16"
    case .bfloat16: return "bfloat16"
    case .int64: return "int64"
    case .int32: return "int32"
    case .int16: return "int16"
    case .int8: return "int8"
    case .uint64: return "uint64"
    case .uint32: return "uint32"
    case .uint16: return "uint16"
    case .uint8: return "uint8"
    case .bool: return "bool"
    case .float8E4M3: return "float8_e4m3fn"
    case .float8E5M2: return "float8_e5m2"
    }
  }
}
