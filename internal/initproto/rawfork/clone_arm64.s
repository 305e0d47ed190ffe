#include "textflag.h"

// func cloneVM(trap, a1, a2, a3, run uintptr, c *child) (pid, errno uintptr)
//
// The child starts behind SVC on the stack it was given, with nothing on it: it finds run and c in registers, which the
// kernel keeps, and never returns. run is called as compiled Go calls (first argument in R0), because the wrapper for calls
// from assembly belongs to the race detector in a build with it.
TEXT ·cloneVM(SB), NOSPLIT, $16-64
	MOVD a1+8(FP), R0
	MOVD a2+16(FP), R1
	MOVD a3+24(FP), R2
	MOVD ZR, R3
	MOVD ZR, R4
	MOVD run+32(FP), R20
	MOVD c+40(FP), R19
	MOVD trap+0(FP), R8
	SVC
	CBZ  R0, child
	CMN  $4095, R0
	BCC  parent
	NEG  R0, R0
	MOVD $-1, R1
	MOVD R1, pid+48(FP)
	MOVD R0, errno+56(FP)
	RET
parent:
	MOVD R0, pid+48(FP)
	MOVD ZR, errno+56(FP)
	RET
child:
	MOVD ZR, R29
	MOVD R19, R0
	CALL (R20)
	BRK
