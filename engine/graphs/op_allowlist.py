"""The operations that a graph from somebody else may run here; each was reviewed and does nothing but compute.

This is a list of what is allowed and not of what is refused, so an operation of a later TensorFlow is refused until it
is reviewed. Some operations that are harmless by their description are left out on purpose: decoders and encoders of
images, sound, protocol buffers and archives (native code on bytes of the file), kernels that TensorFlow creates for
itself (with a leading underscore), and what no inference graph needs.
"""

from __future__ import annotations

from engine.graphs.graph_variables import HOLDERS

_FAMILIES = {
    "structure": """
    Const Placeholder PlaceholderV2 PlaceholderWithDefault NoOp Identity IdentityN Snapshot StopGradient PreventGradient
    GuaranteeConst EnsureShape Assert CheckNumerics ControlTrigger
    """,
    "variables": "ReadVariableOp ResourceGather ResourceGatherNd VariableShape VarIsInitializedOp",
    "control flow": """
    Switch Merge Enter Exit NextIteration LoopCond If StatelessIf While StatelessWhile Case StatelessCase
    PartitionedCall StatefulPartitionedCall FakeParam
    TensorArrayV3 TensorArrayReadV3 TensorArrayWriteV3 TensorArrayGatherV3 TensorArrayScatterV3 TensorArraySplitV3
    TensorArrayConcatV3 TensorArraySizeV3 TensorArrayCloseV3 StackV2 StackPushV2 StackPopV2 StackCloseV2
    EmptyTensorList TensorListReserve TensorListFromTensor TensorListStack TensorListGetItem TensorListSetItem
    TensorListLength TensorListElementShape TensorListPushBack TensorListPopBack TensorListGather TensorListScatter
    TensorListScatterV2 TensorListScatterIntoExistingList TensorListConcat TensorListConcatV2 TensorListConcatLists TensorListSplit TensorListResize
    """,
    "shapes": """
    Shape ShapeN Size Rank Reshape Squeeze ExpandDims Fill ZerosLike OnesLike Range LinSpace Tile BroadcastTo BroadcastArgs
    BroadcastGradientArgs Pack Unpack Concat ConcatV2 ConcatOffset Split SplitV Slice StridedSlice Gather GatherV2 GatherNd
    ScatterNd TensorScatterAdd TensorScatterSub TensorScatterUpdate TensorScatterMax TensorScatterMin Transpose
    ConjugateTranspose InvertPermutation Pad PadV2 MirrorPad Reverse ReverseV2 ReverseSequence Roll Where OneHot DiagPart
    Diag MatrixDiag MatrixDiagV2 MatrixDiagV3 MatrixDiagPart MatrixDiagPartV2 MatrixDiagPartV3 MatrixSetDiag
    MatrixSetDiagV2 MatrixSetDiagV3 MatrixBandPart DynamicPartition DynamicStitch ParallelDynamicStitch Unique UniqueV2
    UniqueWithCounts UniqueWithCountsV2 ListDiff SpaceToBatch SpaceToBatchND BatchToSpace BatchToSpaceND SpaceToDepth
    DepthToSpace ExtractImagePatches ExtractVolumePatches Cast Bitcast DataFormatDimMap DataFormatVecPermute
    UnravelIndex LowerBound UpperBound Bucketize
    """,
    "arithmetic": """
    Abs Acos Acosh Add AddN AddV2 AccumulateNV2 All Angle Any ApproximateEqual ArgMax ArgMin Asin Asinh Atan Atan2 Atanh
    BesselI0 BesselI0e BesselI1 BesselI1e Betainc BitwiseAnd BitwiseOr BitwiseXor Ceil ClipByValue Complex ComplexAbs Conj
    Cos Cosh Cross CumulativeLogsumexp Cumprod Cumsum Digamma Div DivNoNan Equal Erf Erfc Erfinv EuclideanNorm Exp Expm1
    Floor FloorDiv FloorMod Greater GreaterEqual HistogramFixedWidth Igamma Igammac Imag InTopK InTopKV2 Inv Invert IsFinite
    IsInf IsNan LeftShift Less LessEqual Lgamma Log Log1p LogicalAnd LogicalNot LogicalOr Max Maximum Mean Min Minimum Mod
    Mul MulNoNan Ndtri Neg NextAfter NotEqual NthElement Polygamma PopulationCount Pow Prod Real RealDiv Reciprocal
    RightShift Rint Round Rsqrt Select SelectV2 Sigmoid Sign Sin Sinh Sqrt Square SquaredDifference Sub Sum Tan Tanh TopK
    TopKV2 TruncateDiv TruncateMod Xdivy Xlog1py Xlogy Zeta SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum
    UnsortedSegmentMax UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum
    """,
    "linear algebra": """
    BatchMatMul BatchMatMulV2 BatchMatMulV3 Cholesky Einsum Eig FFT FFT2D FFT3D IFFT IFFT2D IFFT3D IRFFT IRFFT2D IRFFT3D
    LogMatrixDeterminant Lu MatMul MatrixDeterminant MatrixInverse MatrixSolve MatrixSolveLs MatrixSquareRoot
    MatrixTriangularSolve Qr RFFT RFFT2D RFFT3D SelfAdjointEig SelfAdjointEigV2 Svd
    """,
    "networks": """
    AvgPool AvgPool3D BatchNormWithGlobalNormalization BiasAdd BiasAddV1 BlockLSTM BlockLSTMV2 Conv2D Conv2DBackpropInput
    Conv3D Conv3DBackpropInputV2 CTCBeamSearchDecoder CTCGreedyDecoder CTCLoss CTCLossV2 DepthwiseConv2dNative
    DepthwiseConv2dNativeBackpropInput Dequantize Dilation2D Elu FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    FakeQuantWithMinMaxVarsPerChannel FractionalAvgPool FractionalMaxPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3
    GRUBlockCell L2Loss LeakyRelu LogSoftmax LRN LSTMBlockCell MaxPool MaxPool3D MaxPoolV2 MaxPoolWithArgmax
    QuantizeAndDequantize QuantizeAndDequantizeV2 QuantizeAndDequantizeV3 Relu Relu6 Selu Softmax
    SoftmaxCrossEntropyWithLogits Softplus Softsign SparseSoftmaxCrossEntropyWithLogits
    """,
    "images": """
    AdjustContrastv2 AdjustHue AdjustSaturation CombinedNonMaxSuppression CropAndResize ExtractGlimpse ExtractGlimpseV2
    HSVToRGB ImageProjectiveTransformV2 ImageProjectiveTransformV3 NonMaxSuppression NonMaxSuppressionV2
    NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NonMaxSuppressionWithOverlaps ResizeArea ResizeBicubic
    ResizeBilinear ResizeNearestNeighbor RGBToHSV ScaleAndTranslate
    """,
    "random": """
    RandomUniform RandomUniformInt RandomStandardNormal TruncatedNormal ParameterizedTruncatedNormal RandomShuffle
    RandomGamma RandomPoisson RandomPoissonV2 Multinomial StatelessRandomUniform StatelessRandomUniformV2
    StatelessRandomUniformInt StatelessRandomUniformIntV2 StatelessRandomUniformFullInt StatelessRandomUniformFullIntV2
    StatelessRandomNormal StatelessRandomNormalV2 StatelessTruncatedNormal StatelessTruncatedNormalV2 StatelessMultinomial
    StatelessRandomGetKeyCounter StatelessRandomGetAlg StatelessRandomGetKeyCounterAlg
    """,
    "sparse": """
    SparseAdd SparseConcat SparseCross SparseDenseCwiseAdd SparseDenseCwiseDiv SparseDenseCwiseMul SparseFillEmptyRows
    SparseMatMul SparseReduceMax SparseReduceSum SparseReorder SparseReshape SparseSegmentMean
    SparseSegmentMeanWithNumSegments SparseSegmentSqrtN SparseSegmentSqrtNWithNumSegments SparseSegmentSum
    SparseSegmentSumWithNumSegments SparseSlice SparseSoftmax SparseSplit SparseTensorDenseAdd SparseTensorDenseMatMul
    SparseToDense RaggedGather RaggedRange RaggedTensorToSparse RaggedTensorToTensor
    """,
    "text": """
    AsString LookupTableFindV2 LookupTableSizeV2 ParseExample ParseExampleV2 ReduceJoin RegexFullMatch RegexReplace
    StaticRegexFullMatch StaticRegexReplace StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2
    StringStrip StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Substr
    UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode UnsortedSegmentJoin
    """,
}

# Replaced by our own variables and tables before anything runs, in the main graph only.
VARIABLES = HOLDERS - {"AutoReloadVariable"}
TABLES = frozenset(["HashTableV2", "MutableHashTableV2"])
# Operations that fill a table; they run once, and nowhere else.
FILLS_TABLE = frozenset(["InitializeTableV2", "LookupTableImportV2", "LookupTableInsertV2"])

# Operations of the oldest graphs that have a successor with the same inputs and attributes.
_TABLE_OPS = """
    HashTable MutableHashTable InitializeTable LookupTableFind LookupTableSize LookupTableImport LookupTableInsert
"""
SUCCESSORS = {f"Ref{op}": op for op in ("Switch", "Merge", "Enter", "Exit", "NextIteration", "Identity")}
SUCCESSORS |= {op: f"{op}V2" for op in _TABLE_OPS.split()}

FAMILIES: dict[str, frozenset[str]] = {name: frozenset(text.split()) for name, text in _FAMILIES.items()}
HARMLESS: frozenset[str] = frozenset().union(*FAMILIES.values())
